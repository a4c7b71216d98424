'use strict'
// One cell while it runs: what waits in it, what it has started, and how it is ended from outside.

class Cell {
  constructor (id) {
    this.id = id
    this.timers = new Set() // functions that stop them, as long as it runs
    this.left = undefined
    this._waiting = new Set()
    this.over = this.wait(new Promise(() => {})) // rejects when it is left
    this.over.catch(() => {})
  }

  // As `value`, once it is there, or how the cell was left.
  wait (value) {
    if (this.left !== undefined) return Promise.reject(this.left)
    const { promise, resolve, reject } = Promise.withResolvers()
    this._waiting.add(reject) // which keeps what waits alive
    Promise.resolve(value).then(
      known => { this._waiting.delete(reject); resolve(known) },
      error => { this._waiting.delete(reject); reject(error) }
    )
    return promise
  }

  async * iterate (values) {
    const iterator = values[Symbol.asyncIterator]?.() ?? values[Symbol.iterator]()
    try {
      for (let next; !(next = await this.wait(iterator.next())).done;) yield await this.wait(next.value)
    } finally {
      iterator.return?.()
    }
  }

  // Whether it was still to be ended.
  leave (error) {
    if (this.timers === null || this.left !== undefined) return false
    this.left = error
    for (const reject of this._waiting) reject(error)
    return true
  }

  finish () {
    if (this.left !== undefined) for (const stop of this.timers) stop()
    this.timers = null
  }
}

module.exports = { Cell }
