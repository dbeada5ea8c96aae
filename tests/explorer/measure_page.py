"""Print how long an explorer takes to open, and each interaction, in Chromium.

    python tests/explorer/measure_page.py FOLDER

The figures of docs/explorer.md are from it. An interaction ends with the next frame after it. The
time of the page's thread on the processor depends little on what else the machine does.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

# Runs an action, waits until ``ready`` holds and the next frame is drawn; milliseconds.
MEASURE = """([action, ready]) => new Promise((resolve, reject) => {
  const start = performance.now();
  const isReady = ready ? new Function(`return ${ready}`) : () => true;
  new Function(action)();
  const wait = () => {
    if (performance.now() - start > 20000) reject(new Error(`never: ${ready}`));
    if (!isReady()) return setTimeout(wait, 1);
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start), 0));
  };
  wait();
})"""
POINT = """
  const frame = document.querySelector('.frame');
  const box = frame.getBoundingClientRect();
  frame.dispatchEvent(new PointerEvent('pointermove',
    {clientX: box.left + Math.random() * box.width, clientY: box.top + 0.6 * box.height}));
"""
PRESS = "document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}', bubbles: true}}))"
GO = "location.hash = '{}'"


def main(folder: Path) -> None:
    address = (folder / "index.html").resolve().as_uri()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        opening = []
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            busy = _processor(page)
            start = time.perf_counter()
            page.goto(address)
            page.wait_for_selector(".gallery li")
            opening.append((1000 * (time.perf_counter() - start), busy()))
            page.close()
        _print("open, until the images are listed", opening)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        busy = _processor(page)
        page.goto(f"{address}#view=image")
        page.wait_for_selector(".list tbody tr")

        def measure(name: str, action: str, ready: str = "", before: str = "") -> None:
            times = []
            for _ in range(7):
                if before:
                    page.evaluate(MEASURE, [before, ""])
                    page.wait_for_timeout(500)
                before_it = busy()
                passed = page.evaluate(MEASURE, [action, ready])
                times.append((passed, busy() - before_it))
            _print(name, times)

        measure("point at a cell", POINT)
        measure("choose a token", PRESS.format("ArrowDown"))
        layer = "(window.other = !window.other) ? 4 : 1"
        layers = f"document.querySelectorAll('[name=layer]')[{layer}].click()"
        measure("show another layer", layers)
        measure("sort the tokens", "document.querySelectorAll('.list th button')[3].click()")
        name = "document.querySelector('h2').innerText"
        measure(
            "next image",
            f"window.before = {name}; " + PRESS.format("ArrowRight"),
            f"{name} !== window.before && {name} === document.querySelector('.frame img').alt",
        )
        measure(
            "all concepts",
            GO.format("view=concepts"),
            "document.querySelector('.concepts-view tbody tr')",
            GO.format("view=images"),
        )
        measure(
            "one concept, with its crops",
            GO.format("view=concept&token=1"),
            "document.querySelectorAll('.crops canvas[data-heat]').length === 12",
            GO.format("view=images"),
        )
        measure(
            "sort the images",
            GO.format("images=miou.0"),
            "document.querySelector('.gallery .value')",
            GO.format("view=images"),
        )
        browser.close()


def _processor(page: Page) -> Callable[[], float]:
    """What tells the milliseconds that the page's thread has been on the processor."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    return busy


def _print(name: str, times: list[tuple[float, float]]) -> None:
    passed, busy = zip(*times)
    print(
        f"{name:40} median {statistics.median(passed):6.0f} ms, longest {max(passed):6.0f} ms, "
        f"on the processor median {statistics.median(busy):6.0f} ms"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
