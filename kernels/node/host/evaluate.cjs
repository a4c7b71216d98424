'use strict'
// Code as V8's own console runs it: declared again, awaited at the top, with a value at its end.

const inspector = require('node:inspector')
const { Interrupted } = require('./errors.cjs')

const GROUP = 'cell'
const DEFAULTS = { replMode: true, awaitPromise: true, objectGroup: GROUP, includeCommandLineAPI: false }

class Evaluator {
  constructor () {
    this._taken = undefined
    Object.defineProperty(globalThis, Symbol.for('kernelpool'), { value: { take: value => { this._taken = value } } })
    this._connect()
  }

  // { value } or { thrown, details }, once the code and what it awaits are over. Never rejects.
  run (code, name) {
    const { promise, resolve } = Promise.withResolvers()
    const expression = `${code}\n//# sourceURL=${name}`
    this._unanswered += 1
    this._session.post('Runtime.evaluate', { ...DEFAULTS, expression }, (error, answer) => {
      this._unanswered -= 1
      resolve(error ? { thrown: new Interrupted() } : this._outcome(answer, name))
    })
    return promise
  }

  // Lets go of what the inspector has named, and of what it still waits for: to hear from it that such a promise was
  // collected would end the process.
  forget () {
    if (this._unanswered === 0) this.ask('Runtime.releaseObjectGroup', { objectGroup: GROUP })
    else this.renew()
  }

  renew () {
    this._session.disconnect()
    this._connect()
  }

  _connect () {
    this._session = new inspector.Session()
    this._session.connect()
    this._unanswered = 0
    this._helper = this.ask('Runtime.evaluate', { expression: "globalThis[Symbol.for('kernelpool')]" }).result.objectId
  }

  // A command of the inspector that answers at once; undefined when it fails.
  ask (method, params) {
    let answer
    this._session.post(method, params, (error, known) => { answer = error ? undefined : known })
    return answer
  }

  // The value of an expression that has no effects; undefined when it has, or fails.
  peek (expression) {
    const answer = this.ask('Runtime.evaluate', { expression, throwOnSideEffect: true, objectGroup: GROUP })
    return answer === undefined || answer.exceptionDetails ? undefined : this._valueOf(answer.result)
  }

  // What cells have declared by let, const and class.
  declared () {
    return this.ask('Runtime.globalLexicalScopeNames', {})?.names ?? []
  }

  _outcome ({ result, exceptionDetails: details }, name) {
    if (!details) return { value: this._valueOf(result) }
    const thrown = this._valueOf(details.exception ?? result)
    return { thrown, details: { ...details, url: name } }
  }

  _valueOf (remote) {
    if (remote.objectId === undefined) {
      if (remote.unserializableValue === undefined) return remote.subtype === 'null' ? null : remote.value
      const text = remote.unserializableValue
      return text.endsWith('n') ? BigInt(text.slice(0, -1)) : Number(text)
    }
    this.ask('Runtime.callFunctionOn', {
      functionDeclaration: 'function (value) { this.take(value) }',
      objectId: this._helper,
      arguments: [{ objectId: remote.objectId }]
    })
    const taken = this._taken
    this._taken = undefined
    return taken
  }
}

module.exports = { Evaluator }
