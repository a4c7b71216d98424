'use strict'
// What was thrown, as text for whoever wrote the cell: the line, the message, and frames of their own.

const util = require('node:util')

const OURS = /^node:(internal\/|inspector$|vm$)/
const PLACE = /\b(cell-\d+\.js):(\d+):(\d+)/
const KEPT = 200
const FRAMES = 30
const LONGEST = 500

// Stacks without our own frames, wherever they are printed.
function shortenStacks () {
  Error.stackTraceLimit = FRAMES
  Error.prepareStackTrace = (error, frames) => {
    const theirs = frames.filter(frame => {
      const file = frame.getFileName() ?? frame.getScriptNameOrSourceURL()
      return !(file && (OURS.test(file) || file.startsWith(__dirname)))
    })
    return [headOf(error), ...theirs].join('\n    at ')
  }
}

function headOf (error) {
  try {
    return Error.prototype.toString.call(error)
  } catch { // getters of the user's
    return 'Error'
  }
}

class Interrupted extends Error {
  constructor () { super('the execution was interrupted') }
}

class ProcessExit extends Error {
  constructor (code) {
    super(`process.exit(${code})`)
    this.code = code
  }
}

class Sources {
  // Of the last cells, by the names that stacks have for them.
  constructor () { this._texts = new Map() }

  add (name, text) {
    this._texts.set(name, text)
    if (this._texts.size > KEPT) this._texts.delete(this._texts.keys().next().value)
  }

  // The line, with a mark below the column; both counted from 1.
  excerpt (name, line, column) {
    const lines = this._texts.get(name)?.split('\n') ?? []
    const text = lines[line - 1] ?? lines.at(-1) // what is missing at the end is missed after it
    if (text === undefined || text.length > LONGEST) return ''
    const indent = text.slice(0, line > lines.length ? text.length : column - 1).replace(/[^\t]/g, ' ')
    return `${name}:${Math.min(line, lines.length)}\n${text}\n${indent}^\n\n`
  }
}

// `details`: the inspector's, which has the place of what does not compile.
function describe (thrown, sources, details) {
  if (thrown instanceof Interrupted) return named('Interrupted', thrown.message, `Interrupted: ${thrown.message}`)
  if (thrown instanceof ProcessExit) {
    return named('ProcessExit', thrown.message, `${thrown.message} ended the execution; variables are kept`)
  }
  try {
    return util.types.isNativeError(thrown) ? ofError(thrown, sources, details) : ofValue(thrown)
  } catch { // code of the user: getters, proxies
    return named('Error', '', 'Error: it cannot be shown')
  }
}

function named (ename, evalue, text) {
  return { ename, evalue, traceback: text.split('\n') }
}

function ofValue (thrown) {
  const text = util.inspect(thrown)
  return named('Uncaught', text, `Uncaught ${text}`)
}

function ofError (error, sources, details) {
  const name = String(error.name || error.constructor?.name || 'Error')
  const lines = util.inspect(error).split('\n').filter(line => !/^\s+\.\.\. \d+ lines matching cause/.test(line))
  const place = placeOf(lines, details)
  return named(name, String(error.message ?? ''), (place ? sources.excerpt(...place) : '') + lines.join('\n'))
}

function placeOf (lines, details) {
  const frame = lines.map(line => PLACE.exec(line)).find(Boolean)
  if (frame) return [frame[1], Number(frame[2]), Number(frame[3])]
  // Of what is thrown later, it would be the end of the code.
  return details?.text === 'Uncaught' ? [details.url, details.lineNumber + 1, details.columnNumber + 1] : null
}

module.exports = { Interrupted, ProcessExit, Sources, describe, shortenStacks }
