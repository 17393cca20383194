// What an AI coding CLI does with a line that its user typed: it asks the model in Ollama, takes an answer above 0.8,
// and else, or where Ollama is missing, slow or wrong, falls back on a few rules of its own. Nothing but Ollama's HTTP
// interface and the built-in fetch: Python and smolcls only made the model (smolcls ollama create three-type).
//
//     npm install && npm start -- "/help" "what is recursion?" "fix bug in src/auth.ts and run tests"

const LABELS = ["command", "prompt", "workflow"] as const;
type Label = (typeof LABELS)[number];

interface Answer {
  label: Label;
  by: string; // who decided, and how sure it is or why it was not the model
}

interface Token {
  token: string;
  logprob: number;
}

/** The part of Ollama's answer that counts; all of it may be missing, for any program may listen at an address. */
interface Generated {
  logprobs?: { top_logprobs?: Token[] }[];
}

const MODEL = process.env.SMOLCLS_MODEL ?? "three-type";
const HOST = process.env.OLLAMA_HOST ?? "127.0.0.1:11434";
const TIMEOUT_MS = Number(process.env.SMOLCLS_TIMEOUT_MS ?? 500); // the first answers, while the model loads, come late
const SURE = 0.8;
// A token takes at least a byte, and one of JavaScript's characters at most three: that many fit into the context of
// 2,048 tokens with the instruction. Ollama would cut a longer prompt without a word, the instruction first.
const LONGEST = 600;

export async function classify(text: string): Promise<Answer> {
  try {
    const [label, probability] = await ask(text);
    const sure = probability.toFixed(3);
    if (probability > SURE) return { label, by: `${MODEL} (${sure})` };
    return { label: ownRules(text), by: `own rules (${MODEL} is unsure: ${sure})` };
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    return { label: ownRules(text), by: `own rules (${cause instanceof Error ? cause.message : String(cause)})` };
  }
}

/** The likeliest label and its probability, from the log-probabilities of the answer's first token. */
async function ask(text: string): Promise<[Label, number]> {
  const response = await fetch(`${HOST.includes("://") ? HOST : `http://${HOST}`}/api/generate`, {
    method: "POST",
    body: JSON.stringify({
      model: MODEL,
      prompt: cleaned(text), // the model's own TEMPLATE and SYSTEM make the prompt of it
      stream: false,
      logprobs: true,
      top_logprobs: 20,
      options: { num_predict: 1 },
      keep_alive: "30m",
    }),
    signal: AbortSignal.timeout(TIMEOUT_MS), // of the body, too
  });
  if (!response.ok) throw new Error(`Ollama says ${response.status}: ${(await response.text()).slice(0, 200)}`);
  const tokens = ((await response.json()) as Generated).logprobs?.[0]?.top_logprobs;
  if (!tokens?.length) throw new Error("an answer without log-probabilities; they need Ollama 0.12.11");

  // Each label is one token or begins with one that no other begins with. What the 20 likeliest do not hold is 0, and
  // nothing is scaled up to 1: a model that was made for something else is never sure.
  const probabilities = LABELS.map((label) =>
    tokens
      .filter(({ token }) => token.trim() !== "" && label.startsWith(token.trim()))
      .reduce((sum, { logprob }) => sum + Math.exp(logprob), 0),
  );
  const most = Math.max(...probabilities);
  return [LABELS[probabilities.indexOf(most)]!, most];
}

/** The text as the model was trained on it: no blanks around it, no control tokens, not too long. */
function cleaned(text: string): string {
  const trimmed = text.trim().replace(/<(?=\||｜)/g, "< ");
  if (trimmed.length <= LONGEST) return trimmed;
  return `${trimmed.slice(0, LONGEST / 2)} […] ${trimmed.slice(-LONGEST / 2)}`.toWellFormed();
}

function ownRules(text: string): Label {
  if (/^\s*\/(\?|[a-z][\w.:-]*)(\s|$)/i.test(text)) return "command";
  if (/^\s*(how|what|why|when|who|which|explain|compare)\b/i.test(text)) return "prompt";
  if (/\b(add|build|create|delete|deploy|fix|implement|refactor|run)\b|\w\.[a-z]{1,4}\b/i.test(text)) return "workflow";
  return "prompt";
}

for (const text of process.argv.slice(2)) {
  const { label, by } = await classify(text);
  console.log(`${label}\t${by}\t${text}`);
}
