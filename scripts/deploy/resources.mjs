// Reads custom resources as the schemas of their own projects do: every value by its JSON schema, and every name by its
// TypeScript type, because the schemas let unknown fields pass and a cluster drops them without a word.
//
//     node resources.mjs RESOURCES.json DIRECTORY
//
// The file has a list of objects; the directory is for the file that the compiler reads. Its node_modules has the schemas.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "external-secrets.io": "@kubernetes-models/external-secrets",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const [file, directory] = process.argv.slice(2);
const resources = JSON.parse(readFileSync(file, "utf8"));
const modules = join(directory, "node_modules");
const wrong = [];
const source = [];

for (const [place, resource] of resources.entries()) {
  const [group, version] = resource.apiVersion.split("/");
  const name = `${resource.kind}/${resource.metadata.name}`;
  const owner = PACKAGES[group];
  if (!owner) {
    wrong.push(`${name}: nobody here knows the group ${group}`);
    continue;
  }
  const path = `${owner}/${group}/${version}/${resource.kind}`;
  const model = await import(pathToFileURL(join(modules, `${path}.js`)).href);
  try {
    new model[resource.kind](resource).validate();
  } catch (error) {
    wrong.push(`${name}: ${error.message}`);
  }
  source.push(
    `import type { I${resource.kind} as T${place} } from "${path}";`,
    `export const r${place}: T${place} = ${JSON.stringify(resource, null, 1)}; // ${name}`,
  );
}

const typed = join(directory, "resources.ts");
writeFileSync(typed, source.join("\n"));
const ts = createRequire(join(modules, "x"))("typescript");
const program = ts.createProgram([typed], {
  noEmit: true,
  strict: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
});
for (const { file: at, start, messageText } of ts.getPreEmitDiagnostics(program)) {
  const { line } = at && start !== undefined ? at.getLineAndCharacterOfPosition(start) : { line: -1 };
  wrong.push(`${at?.fileName ?? "types"}:${line + 1}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`);
}

for (const what of wrong) console.error(what);
console.log(`${resources.length} custom resources by their projects' schemas and types: ${wrong.length} wrong`);
process.exit(wrong.length === 0 ? 0 : 1);
