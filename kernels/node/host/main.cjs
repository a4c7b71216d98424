'use strict'
// The process that runs the cells of a session: node main.cjs MARK COMMANDS MESSAGES, the latter two descriptors.
// Commands come as lines of JSON, one after the other is answered; what it has to say goes out by `outlet.cjs`.

const net = require('node:net')
const readline = require('node:readline')
const util = require('node:util')
const { Cell } = require('./cell.cjs')
const { Interrupted, ProcessExit, Sources, describe, shortenStacks } = require('./errors.cjs')
const { Evaluator } = require('./evaluate.cjs')
const help = require('./help.cjs')
const modules = require('./modules.cjs')
const { Outlet, take } = require('./outlet.cjs')
const rich = require('./rich.cjs')
const { completeness, translate } = require('./source.cjs')
const timers = require('./timers.cjs')

const { setImmediate } = globalThis
const COMMANDS = take(process.argv[3], 'r')
const leave = process.exit.bind(process)

class Host {
  constructor (mark) {
    this.outlet = new Outlet(mark)
    this.evaluator = new Evaluator()
    this.sources = new Sources()
    this.unanswered = null // the command
    this.next = null // one that has come and is not begun
    this.commands = {
      execute: command => this.execute(command),
      complete: ({ code, position }) => help.complete(this.evaluator, code, position),
      inspect: ({ code, position, detail }) => ({ text: help.describe(this.evaluator, code, position, detail) }),
      is_complete: ({ code }) => ({ status: completeness(code) })
    }
  }

  start () {
    shortenStacks()
    this.outlet.takeOverStreams()
    modules.install()
    timers.follow(this.outlet.cells)
    const display = rich.makeDisplay(message => this.show(message))
    modules.hide({ display, $$: display })
    modules.fix({ __await__: value => this.cell().wait(value), __iterate__: values => this.cell().iterate(values) })
    process.exit = code => this.exit(code)
    process.on('SIGINT', () => {}) // or it would end us; it is for the programs that a cell waits for
    process.on('uncaughtException', error => this.uncaught(error))
    process.on('unhandledRejection', error => this.uncaught(error))
    const input = new net.Socket({ fd: COMMANDS, readable: true, writable: false })
    input.on('close', () => leave(0))
    readline.createInterface({ input, crlfDelay: Infinity, terminal: false })
      .on('line', line => {
        const command = JSON.parse(line)
        if (command.do === 'interrupt') this.interrupt(command.id)
        else this.begin(this.next = command)
      })
    this.outlet.send({ type: 'ready', version: process.version })
  }

  // Without frames of ours below the cell's.
  begin (command) {
    setImmediate(() => { if (command === this.next) this.answer(command) })
  }

  interrupt (id) {
    if (this.next?.id === id) this.begin(this.next) // the force may have struck what stood before it
    const command = this.unanswered
    if (command?.id !== id) return
    if (id !== 0) this.outlet.current?.leave(new Interrupted())
    // It is answered before the next turn of the loop, unless the force that was to end a cell has struck our own part.
    setImmediate(() => { if (command === this.unanswered) this.giveUp(command) })
  }

  giveUp ({ id, silent }) {
    const error = describe(new Interrupted(), this.sources)
    this.outlet.current?.finish()
    this.evaluator.renew()
    if (id !== 0 && !silent) this.outlet.send({ type: 'error', cell: id, ...error })
    this.tell(id, { status: 'error', ...error })
  }

  async answer (command) {
    this.unanswered = command
    this.next = null
    let answer
    try {
      answer = await this.commands[command.do](command)
    } catch (error) {
      answer = { error: util.inspect(error) }
    }
    this.evaluator.forget()
    try {
      this.tell(command.id, answer)
    } catch (error) { // it has something that is not JSON
      this.tell(command.id, { status: 'error', error: util.inspect(error) })
    }
  }

  tell (id, answer) {
    this.outlet.send({ type: 'done', id, ...answer })
    this.unanswered = null
  }

  // The outputs are sent before it returns; what it returns is how it ended.
  async execute ({ id, code, count, silent, expressions }) {
    const cell = new Cell(id)
    this.outlet.current = cell
    this.outlet.send({ type: 'begun' })
    try {
      const { value } = await this.run(cell, code, `cell-${count}.js`)
      if (value !== undefined && !silent) this.show({ type: 'execute_result', data: await this.bundle(cell, value), metadata: {} })
      return { status: 'ok', expressions: await this.evaluateAll(cell, expressions) }
    } catch (thrown) {
      const error = this.described(thrown)
      if (error === null) return { status: 'ok', expressions: {} }
      if (!silent) this.outlet.send({ type: 'error', cell: id, ...error })
      return { status: 'error', ...error }
    } finally {
      cell.finish()
      process.exitCode = undefined
    }
  }

  // { value } of the code: a value may be something that looks like a promise. Rejects with what was thrown.
  async run (cell, code, name) {
    this.sources.add(name, code)
    const source = translate(code)
    const outcome = await this.within(cell, () => this.evaluator.run(source, name))
    if ('thrown' in outcome) throw new Thrown(outcome.thrown, outcome.details)
    // `main()` at the end of a cell means to wait for it.
    if (!util.types.isPromise(outcome.value)) return outcome
    return { value: await this.within(cell, () => outcome.value) }
  }

  bundle (cell, value) {
    return this.within(cell, async () => rich.bundleOf(value))
  }

  async evaluateAll (cell, expressions) {
    const found = {}
    for (const [name, code] of Object.entries(expressions ?? {})) {
      try {
        const { value } = await this.run(cell, code, 'expression.js')
        found[name] = { status: 'ok', data: await this.bundle(cell, value), metadata: {} }
      } catch (thrown) {
        found[name] = { status: 'error', ...this.described(thrown) }
      }
    }
    return found
  }

  // As part of the cell, as long as nothing ends it.
  within (cell, action) {
    if (cell.left !== undefined) return cell.over
    return Promise.race([this.outlet.cells.run(cell, action), cell.over])
  }

  // Null for an end that was no failure.
  described (thrown) {
    const { error, details } = thrown instanceof Thrown ? thrown : { error: thrown }
    if (error instanceof ProcessExit && error.code === 0) return null
    return describe(error, this.sources, details)
  }

  // The one that the running code is part of.
  cell () {
    return this.outlet.cells.getStore() ?? this.outlet.current
  }

  show (message) {
    this.outlet.send({ ...message, cell: this.cell()?.id })
  }

  exit (code) {
    const error = new ProcessExit(Number(code ?? process.exitCode ?? 0))
    this.cell()?.leave(error)
    throw error
  }

  // Would end a program: it ends the cell, or is told when its cell is over.
  uncaught (error) {
    if (error instanceof ProcessExit || error instanceof Interrupted) return // how a cell was left, as it knows
    const cell = this.cell()
    if (cell !== null && cell === this.outlet.current && cell.leave(error)) return
    const { traceback } = describe(error, this.sources)
    this.outlet.send({ type: 'stream', name: 'stderr', text: `Uncaught ${traceback.join('\n')}\n`, cell: cell?.id })
  }
}

class Thrown extends Error {
  constructor (error, details) {
    super('thrown')
    this.error = error
    this.details = details
  }
}

new Host(process.argv[2]).start()
