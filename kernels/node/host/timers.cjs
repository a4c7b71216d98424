'use strict'
// Which timers a cell has started, so that an interrupted one does not go on after its next `await`.

const timers = require('node:timers')
const promises = require('node:timers/promises')
const { syncBuiltinESMExports } = require('node:module')

const CLEAR = { setTimeout: clearTimeout, setInterval: clearInterval, setImmediate: clearImmediate }

function follow (cells) {
  for (const [name, clear] of Object.entries(CLEAR)) {
    const start = globalThis[name]
    const followed = function (callback, ...rest) {
      const started = cells.getStore()?.timers
      if (!started || typeof callback !== 'function') return start.call(this, callback, ...rest)
      const stop = () => clear(timer)
      const timer = start.call(this, name === 'setInterval' ? callback : function (...args) {
        started.delete(stop)
        return callback.apply(this, args)
      }, ...rest)
      started.add(stop)
      return timer
    }
    Object.defineProperties(followed, Object.getOwnPropertyDescriptors(start))
    globalThis[name] = timers[name] = followed
    followPromise(cells, name)
  }
  syncBuiltinESMExports()
}

function followPromise (cells, name) {
  const start = promises[name]
  if (name === 'setInterval') return // an iterator, which nobody awaits as a whole
  const where = name === 'setTimeout' ? 2 : 1
  const followed = (...args) => {
    const started = cells.getStore()?.timers
    if (!started || args[where]?.signal) return start(...args)
    const controller = new AbortController()
    const stop = () => controller.abort()
    started.add(stop)
    while (args.length < where) args.push(undefined)
    args[where] = { ...args[where], signal: controller.signal }
    // Neither resolved nor rejected once it is stopped: what waits for it is over.
    return new Promise((resolve, reject) => start(...args).then(
      value => { started.delete(stop); resolve(value) },
      error => { if (error.name !== 'AbortError') reject(error) }
    ))
  }
  promises[name] = followed
}

module.exports = { follow }
