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
  // In the place of process.stdout and process.stderr. What is written is out at once, and nothing is put off or kept
  // between two writes: whatever is ended by force in the midst of one, the next finds all as it should be.
  constructor (outlet, name, fd) {
    super({ autoDestroy: false, emitClose: false })
    this.fd = fd
    this._outlet = outlet
    this._name = name
    this._decoder = new StringDecoder('utf8')
    this._written = [] // [callback, how often], of what was written since the last tick
    this.setMaxListeners(0) // console leaves one behind when it is ended by force
  }

  write (chunk, encoding, done) {
    if (typeof encoding === 'function') [encoding, done] = [undefined, encoding]
    if (typeof chunk === 'string') chunk = Buffer.from(chunk, encoding)
    else if (ArrayBuffer.isView(chunk)) chunk = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    else return super.write(chunk) // which throws
    this._outlet.text(this._name, chunk, this._decoder)
    if (typeof done === 'function') this._call(done)
    return true
  }

  _call (done) {
    if (this._written.length === 0) process.nextTick(() => this._callAll())
    const last = this._written.at(-1)
    if (last?.[0] === done) last[1] += 1
    else this._written.push([done, 1])
  }

  _callAll () {
    for (const [done, times] of this._written.splice(0)) {
      for (let count = 0; count < times; count++) {
        try {
          done(null)
        } catch (error) {
          process.nextTick(() => { throw error })
        }
      }
    }
  }

  // Whoever waits for its end has it, and the next cell has the stream.
  end (chunk, encoding, done) {
    if (typeof chunk !== 'function' && chunk != null) this.write(chunk, encoding)
    const called = [chunk, encoding, done].find(value => typeof value === 'function')
    process.nextTick(() => {
      this.emit('finish')
      called?.()
    })
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

  // In its place among the text. One that is ended by force in the midst of it may be torn: each begins on a new line,
  // and has its number, by which its mark knows it.
  send (message) {
    const number = ++this._sent
    writeAll(MESSAGES, Buffer.from(`\n${stringify({ ...message, number })}\n`))
    writeAll(TEXT, Buffer.from(`\0${this._mark}:${number}\n`))
  }
}

module.exports = { Outlet, take }
