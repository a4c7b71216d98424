'use strict'
// What leaves this process: text in descriptor 1, messages in one of their own, and in 1 a mark where each belongs.
//
// Text that JavaScript writes, text of child processes and messages have one order, that of the pipe behind 1. All is
// written at once and in full: when nobody reads, whoever writes waits.

const fs = require('node:fs')
const { AsyncLocalStorage } = require('node:async_hooks')
const { Writable } = require('node:stream')
const { StringDecoder } = require('node:string_decoder')

const TEXT = 1
const MESSAGES = take(process.argv[4], 'w')
const { stringify } = JSON
const sleeper = new Int32Array(new SharedArrayBuffer(4))

// A pipe that we were handed, such that no program that a cell starts has it too.
function take (given, flags) {
  const taken = fs.openSync(`/proc/self/fd/${given}`, flags)
  fs.closeSync(Number(given))
  return taken
}

function writeAll (descriptor, data) {
  let written = 0
  while (written < data.length) {
    try {
      written += fs.writeSync(descriptor, data, written)
    } catch (error) {
      // A child process that shares the pipe may have made it one that does not wait.
      if (error.code !== 'EAGAIN') throw error
      Atomics.wait(sleeper, 0, 0, 1)
    }
  }
}

class Captured extends Writable {
  // In the place of process.stdout and process.stderr, whose own writes may be put off.
  constructor (outlet, name, fd) {
    super({ decodeStrings: true })
    this.fd = fd
    this._outlet = outlet
    this._name = name
    this._decoder = new StringDecoder('utf8')
  }

  _write (chunk, _encoding, done) {
    this._outlet.text(this._name, chunk, this._decoder)
    done()
  }

  // The next cell needs it.
  _final (done) { done() }
  end (chunk, encoding, done) {
    if (typeof chunk !== 'function' && chunk != null) this.write(chunk, encoding)
    const called = [chunk, encoding, done].find(value => typeof value === 'function')
    if (called) process.nextTick(called)
    return this
  }

  destroy () { return this }
}

class Outlet {
  constructor (mark) {
    this.cells = new AsyncLocalStorage() // which cell the code that runs belongs to
    this.current = null
    this._mark = mark
    this._sent = 0
  }

  takeOverStreams () {
    for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
      const stream = new Captured(this, name, fd)
      Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream })
    }
  }

  text (name, chunk, decoder) {
    const cell = this.cells.getStore() ?? this.current
    if (name === 'stdout' && cell === this.current) writeAll(TEXT, chunk)
    else this.send({ type: 'stream', name, text: decoder.write(chunk), cell: cell?.id })
  }

  // In its place among the text.
  send (message) {
    this._sent += 1
    writeAll(MESSAGES, Buffer.from(stringify(message) + '\n'))
    writeAll(TEXT, Buffer.from(`\0${this._mark}:${this._sent}\n`))
  }
}

module.exports = { Outlet, take }
