/**
 * The rule that stands in for a person: how cheerful the words of a text are.
 */

const CHEERFUL = `
  amused beautiful best better bless blessed bright brave calm care cheer cheered cheerful comfort
  dance danced dear delight delighted delightful dream eager easy enjoy enjoyed excellent fair faithful
  fine flower flowers fortunate free friend friendly friends fun funny gay generous gentle gift glad
  gladly good grace grateful great happily happiness happy health help helped home honest honour hope
  hoped hug kind kindly kindness kiss laugh laughed laughing lively love loved lovely lucky merry nice
  peace play played playing pleasant please pleased pleasure praise praised pretty pride proud rejoiced
  rich safe sang shine shining sing singing smile smiled smiling song star strong success sun sunshine
  sweet thank thanked thanks treasure true trust warm welcome well wise wonderful
`;

const GLOOMY = `
  afraid alarm alarmed alone anger angry anxious ashamed awful bad battle bitter blame blind blood break
  broke broken burn cold cried cruel cry crying danger dangerous dark dead death despair died die dirty
  disappointed dreadful dying empty enemy evil fail failed false fear feared fell fierce fight fool
  foolish fought fright frightened grave grief guilty harm hate hated horrible hungry hurt idle ill
  kill killed lie lonely lose lost mad mean mischief miserable misery mistake murder naughty never pain
  pale poison poor prison punish punished rage regret rude sad scared scream selfish severe shame sick
  sorrow sorry steal stole stupid suffer suffered tears terrible terror thief threw tired trouble ugly
  unhappy vain violent war weak weary weep wept wicked worse worst wound wounded wretched wrong
`;

const words = (list: string): ReadonlySet<string> => new Set(list.trim().split(/\s+/));
const cheerful = words(CHEERFUL), gloomy = words(GLOOMY);

/** The cheerful words of a text less the gloomy ones, each word counted once. */
export function sentiment(text: string): number {
  let score = 0;
  for (const word of new Set(text.toLowerCase().match(/[a-z]+/g))) {
    if (cheerful.has(word)) score++;
    else if (gloomy.has(word)) score--;
  }
  return score;
}
