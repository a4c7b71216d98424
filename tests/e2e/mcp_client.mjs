// What npm's MCP client makes of a gateway: everything that it saw, as one JSON object.
// Copied to where its package is, for that is where Node looks for it.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, token] = process.argv.slice(2);
const requestInit = { headers: { Authorization: `Bearer ${token}` } };
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
const client = new Client({ name: "test", version: "1" });
const errors = [];
const progress = [];
client.onerror = (error) => errors.push(String(error));
const run = (code, options) => client.callTool({ name: "run_code", arguments: { code } }, undefined, options);

await client.connect(transport);
const { tools } = await client.listTools();
const plot = await run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('drawn')");
// It ends once it was heard of.
let touched;
const onprogress = (event) => {
  progress.push(event.message);
  touched ??= client.callTool({ name: "run_command", arguments: { command: "touch /tmp/go" } });
};
const slow = await run("import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)\n'slept'", { onprogress });
await touched;
const gaveUp = await run("import time\ntime.sleep(60)", { timeout: 1500 }).catch((error) => String(error));
const failed = await run("1 / 0");
const { resources } = await client.listResources();
const { contents } = await client.readResource({ uri: resources[0].uri });
await transport.terminateSession();
await client.close();

const session = plot.structuredContent.session;
console.log(JSON.stringify({
  tools: tools.map((tool) => tool.name), plot, slow, progress, gaveUp, failed, resources, contents, errors, session,
}));
