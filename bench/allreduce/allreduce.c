/* The same all-reduces as rank.ts, by a C program: `allreduce BYTES REPEATS SAMPLES`. Rank 0 prints the
   seconds of one all-reduce, the mean of REPEATS, once a sample. */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  if (argc != 4) MPI_Abort(MPI_COMM_WORLD, 2);
  int count = atoi(argv[1]) / (int)sizeof(float), repeats = atoi(argv[2]), samples = atoi(argv[3]);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  float *data = malloc(count * sizeof(float));
  for (int i = 0; i < count; i++) data[i] = 0;
  for (int sample = -1; sample < samples; sample++) { /* the first is not counted */
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    for (int i = 0; i < repeats; i++) {
      MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
    if (rank == 0 && sample >= 0) printf("%.9f\n", (MPI_Wtime() - start) / repeats);
  }
  free(data);
  MPI_Finalize();
  return 0;
}
