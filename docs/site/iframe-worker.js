// Browsers refuse workers of pages that are opened as files. The search of the site is one: here it
// runs in an empty frame instead, so that it needs neither a server nor a network.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      const script = (source) =>
        new Promise((done) => {
          const element = inside.document.createElement("script")
          element.src = source
          element.onload = element.onerror = done
          inside.document.head.append(element)
        })
      inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => script(source)), Promise.resolve())
      inside.postMessage = (data) => this.answer(data)
      this.ready = script(url)
    }
    postMessage(data) {
      const { contentWindow: inside } = this.frame
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
    answer(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    terminate() {
      this.frame.remove()
    }
  }
