// Prints what AsyncAPI's own parser has against a document, a line a finding: node asyncapi_parse.mjs PARSER_FOLDER FILE
import { createRequire } from "module";
import { readFileSync } from "fs";

const [folder, file] = process.argv.slice(2);
const { Parser } = createRequire(import.meta.url)(folder);
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf-8"));
// Severity 2 and above are recommendations, such as to use the latest AsyncAPI.
for (const one of diagnostics) if (one.severity < 2) console.log(one.code, one.path.join("."), one.message);
if (!document) process.exit(1);
