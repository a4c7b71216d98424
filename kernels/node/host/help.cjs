'use strict'
// What a client asks about code without running it: how it may go on, what a name stands for.

const util = require('node:util')

const KEYWORDS = `async await break case catch class const continue debugger default delete do else export extends false
  finally for from function if import in instanceof let new null of return static super switch this throw true try typeof
  undefined var void while with yield`.split(/\s+/)
const CHAIN = /(?:^|[^\w$.])((?:[A-Za-z_$][\w$]*\??\.)*)([A-Za-z_$]?[\w$]*)$/
const MOST = 1000

function complete (evaluator, code, position) {
  const found = CHAIN.exec(code.slice(0, position))
  if (!found) return { matches: [], start: position }
  const [, chain, begun] = found
  const names = chain ? namesOf(evaluator.peek(chain.replace(/\??\.$/, ''))) : globalNames(evaluator)
  const matches = [...new Set(names)].filter(name => name.startsWith(begun) && /^[\w$]+$/.test(name))
  return { matches: matches.sort(byName).slice(0, MOST), start: position - begun.length }
}

function globalNames (evaluator) {
  return [...evaluator.declared(), ...namesOf(globalThis), ...KEYWORDS]
}

// Its own and those that it has of its prototypes. A proxy may run code of the user's: it has none.
function namesOf (value) {
  const names = []
  for (let next = value; next !== null && next !== undefined; next = Object.getPrototypeOf(Object(next))) {
    if (util.types.isProxy(next)) break
    names.push(...Object.getOwnPropertyNames(Object(next)))
  }
  return names
}

// What begins with _ or $ comes last.
function byName (a, b) {
  return /^[_$]/.test(a) - /^[_$]/.test(b) || (a < b ? -1 : 1)
}

// Text about the name around the position, or null.
function describe (evaluator, code, position, detail) {
  const before = /(?:[A-Za-z_$][\w$]*\.)*[\w$]*$/.exec(code.slice(0, position))[0]
  const name = before + /^[\w$]*/.exec(code.slice(position))[0]
  if (!/^[A-Za-z_$]/.test(name)) return null
  const value = evaluator.peek(name)
  if (value === undefined) return null
  if (typeof value !== 'function') return `${name}: ${util.inspect(value, { depth: detail ? 3 : 1 })}`
  const source = Function.prototype.toString.call(value)
  return `${name}: ${util.inspect(value)}\n\n${detail ? source : source.split('\n').slice(0, 5).join('\n')}`
}

module.exports = { complete, describe }
