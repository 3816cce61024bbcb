// The official TypeScript client through a whole session: list, read, complete, generate with progress, cancel.
//   node client.mjs legacy|auto stdio COMMAND [ARGUMENT...]
//   node client.mjs legacy|auto http URL
// Prints one line of what it saw; an assertion that fails ends it with exit code 1.
import assert from 'node:assert/strict';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';

const [mode, kind, target, ...rest] = process.argv.slice(2);
const transport =
  kind === 'http'
    ? new StreamableHTTPClientTransport(new URL(target))
    : new StdioClientTransport({ command: target, args: rest, env: { ...process.env }, stderr: 'ignore' });
const client = new Client({ name: 'conformance', version: '1' }, { versionNegotiation: { mode } });
const patient = { timeout: 300_000, resetTimeoutOnProgress: true };

await client.connect(transport);
assert.equal(client.getNegotiatedProtocolVersion(), mode === 'legacy' ? '2025-11-25' : '2026-07-28');

const tools = (await client.listTools()).tools.map((tool) => tool.name);
for (const name of ['generate_tissue_image', 'classify_image', 'evaluate_model']) assert.ok(tools.includes(name), name);
const resources = (await client.listResources()).resources;
const templates = (await client.listResourceTemplates()).resourceTemplates;
const prompts = (await client.listPrompts()).prompts;
for (const resource of resources) {
  const [read] = (await client.readResource({ uri: resource.uri })).contents;
  assert.equal(read.mimeType, resource.mimeType, resource.uri);
  assert.ok((read.text ?? read.blob).length > 0, resource.uri);
}
for (const prompt of prompts) {
  const codes = ['MUS', 'STR'];
  const required = (prompt.arguments ?? []).filter((argument) => argument.required);
  const lesson = await client.getPrompt({
    name: prompt.name,
    arguments: Object.fromEntries(required.map((argument, i) => [argument.name, codes[i]])),
  });
  assert.match(lesson.messages[0].content.text, /not for diagnosis/);
}
const offered = await client.complete({
  ref: { type: 'ref/resource', uri: 'pathsynth://tissues/{code}' },
  argument: { name: 'code', value: 'fat' },
});
assert.deepEqual(offered.completion.values, ['ADI']);

// A request that was made before is answered from the store, without progress: every session asks anew.
const seed = process.pid;
const progress = [];
const made = await client.callTool(
  { name: 'generate_tissue_image', arguments: { tissue: 'ADI', seed } },
  { ...patient, onprogress: (each) => progress.push(each) },
);
assert.ok(!made.isError, JSON.stringify(made.content));
const answer = JSON.parse(made.content[0].text);
assert.equal(answer.verified, true);
assert.ok(progress.length >= 2, 'progress was reported');
assert.ok(progress.every((each, i) => i === 0 || each.progress > progress[i - 1].progress), 'progress grows');
assert.equal(made.content.filter((block) => block.type === 'image').length, 1);
const link = made.content.find((block) => block.type === 'resource_link');
const [stored] = (await client.readResource({ uri: link.uri })).contents;
assert.equal(Buffer.from(stored.blob, 'base64').subarray(1, 4).toString(), 'PNG');

// Hardly a tile reaches a confidence of 1: this call would go on until its attempts or its time are spent.
const giveUp = new AbortController();
let steps = 0;
const abandoned = client.callTool(
  {
    name: 'generate_tissue_image',
    arguments: { tissue: 'NORM', count: 9, seed, min_confidence: 1, max_attempts: 100 },
  },
  { ...patient, signal: giveUp.signal, onprogress: () => ++steps === 2 && giveUp.abort('enough') },
);
await assert.rejects(abandoned);
assert.ok(steps >= 2, 'the call was cancelled while it worked');
const started = performance.now();
const seen = await client.callTool({ name: 'classify_image', arguments: { image: answer.tiles[0].image_id } }, patient);
const seconds = (performance.now() - started) / 1000;
assert.ok(!seen.isError, JSON.stringify(seen.content));
assert.ok(seconds < 15, `the next call waited ${seconds.toFixed(1)} s`);
assert.equal(seen.structuredContent.tissue, 'ADI');

console.log(
  `${tools.length} tools, ${resources.length} resources, ${templates.length} templates, ${prompts.length} prompts, ` +
    `${progress.length} reports of progress, next call ${seconds.toFixed(2)} s after a cancelled one`,
);
await client.close();
