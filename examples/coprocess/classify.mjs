// Keeps `smolcls classify --json` open as a co-process and asks it line by line. Where it is missing, slow, dead or
// unsure, a few rules of our own answer. Needs Node.js 18 and no packages: node classify.mjs "/help" "fix the bug"
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const COMMAND = process.env.SMOLCLS_COMMAND ?? "smolcls";
const TIMEOUT_MS = Number(process.env.SMOLCLS_TIMEOUT_MS ?? 1000); // the first answers may come from our rules
const HANGS_MS = 60 * TIMEOUT_MS; // time enough to build and load a model
const SURE = 0.8;

class Coprocess {
  #child = null;
  #waiting = new Map(); // a question's number to the function that takes its answer
  #asked = 0;
  #silentSince = null; // when the first question without an answer was asked

  /** The answer to a text, or null where none came in time. */
  ask(text) {
    this.#child ??= this.#start();
    this.#silentSince ??= Date.now();
    const id = ++this.#asked;
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#late(id), TIMEOUT_MS);
      this.#waiting.set(id, (answer) => (clearTimeout(timer), resolve(answer)));
      this.#child.stdin.write(JSON.stringify({ id, text }) + "\n");
    });
  }

  close() {
    this.#child?.kill("SIGKILL");
    this.#child?.stdout.destroy();
  }

  #start() {
    const child = spawn(COMMAND, ["classify", "--json"], { stdio: ["pipe", "pipe", "ignore"] });
    child.on("error", () => this.#gone(child)); // it is not installed
    child.on("close", () => this.#gone(child)); // it died: the next question starts another
    child.stdin.on("error", () => {}); // #gone tells the same
    createInterface({ input: child.stdout }).on("line", (line) => {
      const answer = JSON.parse(line);
      this.#silentSince = null;
      this.#settle(answer.id, answer); // one that comes too late is waited for by nobody
    });
    return child;
  }

  #settle(id, answer) {
    this.#waiting.get(id)?.(answer);
    this.#waiting.delete(id);
  }

  #late(id) {
    this.#settle(id, null);
    if (this.#silentSince !== null && Date.now() - this.#silentSince > HANGS_MS) this.#child?.kill("SIGKILL");
  }

  #gone(child) {
    if (this.#child !== child) return;
    this.#child = this.#silentSince = null;
    for (const id of [...this.#waiting.keys()]) this.#settle(id, null);
  }
}

function ownRules(text) {
  if (/^\s*\/(\?|[a-z][\w.:-]*)(\s|$)/i.test(text)) return "command";
  if (/^\s*(how|what|why|when|who|which|explain|compare)\b/i.test(text)) return "prompt";
  if (/\b(add|build|create|delete|deploy|fix|implement|refactor|run)\b|\w\.[a-z]{1,4}\b/i.test(text)) return "workflow";
  return "prompt";
}

const smolcls = new Coprocess();
for (const text of process.argv.slice(2)) {
  const answer = await smolcls.ask(text);
  const sure = answer !== null && answer.label && answer.confidence >= SURE;
  const why = answer === null ? "no answer from smolcls" : (answer.error ?? `smolcls is unsure: ${answer.confidence}`);
  const [label, who] = sure ? [answer.label, `smolcls (${answer.backend})`] : [ownRules(text), `own rules (${why})`];
  console.log(`${label}\t${who}\t${text}`);
}
smolcls.close();
