// What @jupyterlab/services makes of a gateway: everything that it saw, as one JSON object.
// JupyterLab and VS Code have their kernels through it. Copied to where the package is, for that is where Node looks.
import services from "@jupyterlab/services";
import ws from "ws";

const { KernelManager, KernelSpecManager, ServerConnection, SessionManager } = services;
const [baseUrl, token] = process.argv.slice(2);
const sockets = [];
class Socket extends ws {
  constructor(...rest) {
    super(...rest);
    sockets.push(this);
  }
}
const serverSettings = ServerConnection.makeSettings({ baseUrl, token, WebSocket: Socket });

// --- what the client itself finds wrong
const complaints = [];
console.debug = () => {};
console.warn = console.error = (...words) => complaints.push(words.map(String).join(" "));
process.on("unhandledRejection", (error) => complaints.push(String(error)));

const text = (said, name = "stdout") =>
  said.filter((each) => each.type === "stream" && each.content.name === name).map((each) => each.content.text).join("");
const result = (said) => said.find((each) => each.type === "execute_result")?.content.data["text/plain"];

// A cell under way: `done` is what became of it, `until` waits for an output.
function start(kernel, code, answer) {
  const future = kernel.requestExecute({ code, allow_stdin: answer !== undefined });
  const said = [];
  const waiting = [];
  future.onIOPub = ({ header, content }) => {
    said.push({ type: header.msg_type, content });
    waiting.forEach((look) => look());
  };
  future.onStdin = (message) => {
    said.push({ type: "input_request", content: message.content });
    future.sendInputReply({ status: "ok", value: answer }, message.header);
  };
  const done = future.done.then(({ content: { status, ename, execution_count } }) => (
    { status, ename, execution_count, text: text(said), result: result(said), kinds: said.map((each) => each.type) }
  ));
  const until = (holds) => new Promise((resolve) => {
    const look = () => holds(said) && resolve();
    waiting.push(look);
    look();
  });
  return { done, until };
}
const run = (...rest) => start(...rest).done;
const signalled = (signal, holds) => new Promise((resolve) => {
  const look = (_, value) => {
    if (holds(value)) {
      signal.disconnect(look);
      resolve(value);
    }
  };
  signal.connect(look);
});
const hex = (view) => Buffer.from(view.buffer, view.byteOffset, view.byteLength).toString("hex");
const seen = { path: `folder/${process.pid}.ipynb` };
setTimeout(() => {
  process.stderr.write(`it waits; until then ${JSON.stringify({ ...seen, complaints })}`);
  process.exit(1);
}, 220_000);

// --- a session
const specs = new KernelSpecManager({ serverSettings });
const kernels = new KernelManager({ serverSettings });
const sessions = new SessionManager({ serverSettings, kernelManager: kernels });
await Promise.all([specs.ready, kernels.ready, sessions.ready]);
seen.specs = { default: specs.specs.default, names: Object.keys(specs.specs.kernelspecs) };
const session = await sessions.startNew(
  { path: seen.path, name: "a.ipynb", type: "notebook", kernel: { name: specs.specs.default } },
);
const { kernel } = session;
const info = await kernel.info;
const line = sockets.at(-1);
seen.session = { path: session.path, protocol: line.protocol, subshells: kernel.supportsSubshells };
seen.language = info.language_info.name;

// --- cells
seen.first = await run(kernel, "x = 41\nprint('written')\nx + 1");
seen.failed = await run(kernel, "1 / 0");
seen.stdin = await run(kernel, "'Hello ' + input('Who? ')", "Ada");
seen.completed = (await kernel.requestComplete({ code: "x.bit_le", cursor_pos: 8 })).content.matches;

// --- comms with buffers, from either side
const target = `
from comm import create_comm, get_comm_manager
got = []
def opened(comm, message):
    got.append(bytes(message['buffers'][0]))
    def echo(message):
        got.append(bytes(message['buffers'][0]))
        comm.send(message['content']['data'], buffers=[got[-1][::-1]])
    comm.on_msg(echo)
get_comm_manager().register_target('echo', opened)
`;
await run(kernel, target);
const comm = kernel.createComm("echo");
await comm.subshellStarted;
const echoed = new Promise((resolve) => { comm.onMsg = resolve; });
// The cell ends when the comm was heard, which is beside it: its messages go to a subshell.
const listening = run(kernel, "import time\nwhile len(got) < 2: time.sleep(0.01)\n[each.hex() for each in got]");
comm.open({ at: "open" }, undefined, [Uint8Array.of(0, 255, 1)]);
comm.send({ at: "message" }, undefined, [Uint8Array.of(1, 2, 254)]);
const echo = await echoed;
seen.echo = { data: echo.content.data, buffers: echo.buffers.map(hex), subshell: comm.subshellId !== null };
seen.listening = await listening;
await comm.close().done;
const counted = [];
const offered = new Promise((resolve) => {
  kernel.registerCommTarget("ours", (comm, message) => {
    comm.onMsg = ({ content }) => counted.push(content.data);
    resolve(message);
  });
});
await run(kernel, "mine = create_comm('ours', data={'n': 1}, buffers=[b'\\xff\\x00', bytes(3)])");
const open = await offered;
seen.offered = { data: open.content.data, buffers: open.buffers.map(hex) };

// --- a cell that does not end
const busy = start(kernel, "print('runs', flush=True)\nwhile True: pass");
await busy.until((said) => text(said).includes("runs"));
const { subshell_id: subshellId } = (await kernel.requestCreateSubshell({}).done).content;
const beside = kernel.clone({ subshellId });
seen.beside = await run(beside, "x + 1");
seen.subshells = (await kernel.requestListSubshell({}).done).content.subshell_id.includes(subshellId);
seen.deleted = (await kernel.requestDeleteSubshell({ subshell_id: subshellId }).done).content.status;
beside.dispose();
await kernel.interrupt();
seen.interrupted = await busy.done;

// --- the connection breaks, while nobody reads it
const talk = "for n in range(150):\n    print(n, flush=True)\n    mine.send(n)\n    time.sleep(0.01)\n'said'";
const talking = start(kernel, talk);
await talking.until((said) => text(said).includes("\n20\n"));
const back = signalled(kernel.connectionStatusChanged, (status) => status === "connected");
line.terminate();
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 400);
await back;
seen.reconnected = { ...await talking.done, counted };

// --- the debugger, as JupyterLab's
let sequence = 0;
const debug = async (command, rest = {}) => {
  const { content } = await kernel.requestDebug({ type: "request", seq: ++sequence, command, arguments: rest }).done;
  if (!content.success) {
    throw new Error(`${command}: ${JSON.stringify(content)}`);
  }
  return content.body;
};
const code = "def double(n):\n    twice = n * 2\n    return twice\nprint(double(21))";
await debug("debugInfo");
await debug("initialize", {
  clientID: "jupyterlab", clientName: "JupyterLab", adapterID: "ipykernel", pathFormat: "path", locale: "en",
  linesStartAt1: true, columnsStartAt1: true, supportsVariableType: true, supportsVariablePaging: true,
  supportsRunInTerminalRequest: true,
});
await debug("attach");
const { sourcePath: path } = await debug("dumpCell", { code });
const { breakpoints } = await debug("setBreakpoints", { breakpoints: [{ line: 3 }], source: { path }, sourceModified: false });
await debug("configurationDone");
const stopping = signalled(kernel.iopubMessage, ({ header, content }) => (
  header.msg_type === "debug_event" && content.event === "stopped"
));
const stopped = start(kernel, code);
const { threadId } = (await stopping).content.body;
const { stackFrames: [frame] } = await debug("stackTrace", { threadId });
const { scopes: [scope] } = await debug("scopes", { frameId: frame.id });
const { variables } = await debug("variables", { variablesReference: scope.variablesReference });
await debug("continue", { threadId });
seen.debugged = {
  breakpoints: breakpoints.map((each) => each.verified), frame: [frame.name, frame.line], cell: await stopped.done,
  variables: variables.map(({ name, value }) => [name, value]),
};
await debug("disconnect", { restart: false, terminateDebuggee: false });

// --- ends, of the interpreter and of the session
await kernel.restart();
seen.restarted = await run(kernel, "'x' in globals()");
const restarting = signalled(kernel.statusChanged, (status) => status === "autorestarting");
run(kernel, "import os\nos._exit(1)").catch(() => {});
await restarting;
seen.died = await run(kernel, "6 * 7");
await session.setPath(`${seen.path}-moved`);
await sessions.refreshRunning();
seen.running = [...sessions.running()].filter((each) => each.id === session.id).map((each) => each.path);
const other = kernels.connectTo({ model: kernel.model });
await other.info;
const dead = signalled(other.statusChanged, (status) => status === "dead");
await session.shutdown();
await dead;
await Promise.all([sessions.refreshRunning(), kernels.refreshRunning()]);
seen.left = [...sessions.running(), ...kernels.running()].map((each) => each.id);
seen.ids = [session.id, kernel.id];

console.log(JSON.stringify({ ...seen, complaints }));
process.exit();
