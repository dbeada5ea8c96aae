"""The page in a browser: each interaction, names that are HTML, accessibility, and sizes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explorer_data import read_script, unpack
from sgr.explorer import image_data
from sgr.explorer.packing import pack, write_script

WEB = Path(__file__).resolve().parents[2] / "projects" / "SGR" / "sgr" / "explorer" / "web"
DESKTOP, PHONE = (1280, 900), (390, 800)
HOSTILE = "<img src=x onerror=window.hacked=1>"
STATES = {
    "images": "view=images",
    "class": "view=images&images=iou.0.0",
    "image": "view=image&image=0&token=3",
    "compared": "view=image&image=1&layer=prediction",
    "without tokens": "view=image&models=2&model=2&layer=errors",
    "concepts": "view=concepts",
    "concept": "view=concept&token=2",
}


HEAT = """() => {
  const canvas = document.querySelector('.frame .heat');
  const context = canvas.getContext('2d');
  return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


def frame(page, number=0):
    return page.locator(".frame").nth(number)


def point(page, x, y, number=0):
    box = frame(page, number).bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def state(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def texts(page, selector):
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


@pytest.fixture
def content(explorer):
    return read_script(explorer / "data" / "00000.js", "explorerImage")[1]


@pytest.fixture
def awkward(explorer, content, index, tmp_path):
    """An explorer with long names: its first image is tall, the first two have no labels.

    The second image has no predictions either.
    """
    folder = tmp_path / "explorer"
    shutil.copytree(explorer, folder)
    index["title"] = 68 * "T"
    index["classes"] = [67 * "m" + name[0] for name in index["classes"]]
    index["images"][0]["size"] = [1000, 100]
    write_script(folder / "data" / "index.js", "explorerIndex", index)
    Image.new("RGB", (16, 160)).save(folder / "thumbnails" / "00000.jpg")
    content["labels"] = None
    write_script(folder / "data" / "00000.js", "explorerImage", 0, content)
    for model in content["models"]:
        model["prediction"] = None
    write_script(folder / "data" / "00001.js", "explorerImage", 1, content)
    return folder


@pytest.fixture(scope="module")
def axe(page_sources):
    return page_sources / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def regions(content):
    return unpack(content["models"][0]["kinds"]["tokens"]["regions"])


class TestImages:
    def test_one_leads_to_its_image_and_back(self, open_page):
        page = open_page()
        assert len(texts(page, ".gallery li")) == 5
        page.locator(".gallery a").nth(2).click()
        page.wait_for_selector(".frame")
        assert state(page)["image"] == "2"
        page.go_back()
        page.wait_for_selector(".gallery")

    def test_sorted_by_how_they_fail(self, open_page, index):
        page = open_page()
        page.get_by_label("Sort images").select_option(label="lowest mIoU, SGR")
        order = np.argsort([image["models"][0]["miou"] for image in index["images"]])
        names = [index["images"][place]["name"] for place in order]
        assert texts(page, ".gallery .name") == names
        page.get_by_label("Sort images").select_option(label="models differ most: SGR, FCN")
        shares = [dict((tuple(d[:2]), d[2]) for d in one["differ"]) for one in index["images"]]
        order = np.argsort([-one[0, 2] for one in shares], kind="stable")
        assert texts(page, ".gallery .name") == [index["images"][i]["name"] for i in order]
        page.locator(".gallery a").first.click()
        assert state(page)["layer"] == "prediction"

    def test_where_a_class_fails(self, open_page, index):
        page = open_page()
        page.locator("summary").click()
        page.get_by_role("button", name="images with the lowest IoU of grass, FCN").click()
        rates = {}
        for image in index["images"]:
            for label, intersection, union in image["models"][2]["iou"]:
                if index["classes"][label] == "grass":
                    rates[image["name"]] = intersection / union
        assert texts(page, ".gallery .name") == sorted(rates, key=rates.get)
        assert page.locator("details").get_attribute("open") is not None
        page.locator(".gallery a").first.click()
        assert state(page)["only"] == "2"

    def test_filtered_by_name(self, open_page):
        page = open_page()
        page.get_by_label("Filter images").fill("00003")
        assert texts(page, ".gallery .name") == ["00003.jpg"]
        assert page.locator(":focus").get_attribute("type") == "search"


class TestImage:
    def test_owners_of_a_cell(self, open_page, regions):
        page = open_page("view=image")
        point(page, 0.3, 0.6)
        rows, columns = regions.shape[1:]
        cell = regions[:, int(0.6 * 96 / 8), int(0.3 * 96 / 8)].astype(float)
        expected = np.argsort(-cell, kind="stable")[: min(5, (cell > 0).sum())]
        first = page.locator(".owners").first
        assert first.locator("h4").inner_text() == "SGR"
        tokens = [text.split()[0] for text in first.locator("button").all_inner_texts()]
        assert tokens == [str(token) for token in expected]
        share = f"{100 * cell[expected[0]] / cell.sum():.1f} %"
        assert first.locator(".value").first.inner_text() == share
        assert page.locator(".owners h4").all_inner_texts() == ["SGR", "GloRe", "FCN"]
        assert "no tokens" in page.locator(".owners").nth(2).inner_text()
        # The pointer is at the same place in every model.
        for number in (1, 2):
            box = page.locator(".frame .cell").nth(number).bounding_box()
            outer = frame(page, number).bounding_box()
            assert abs((box["x"] - outer["x"]) / outer["width"] - 0.3) < 0.09
        assert rows == columns == 12

    def test_a_click_selects_the_owner(self, open_page, regions, content):
        page = open_page("view=image")
        box = frame(page).bounding_box()
        frame(page).click(position={"x": 0.7 * box["width"], "y": 0.2 * box["height"]})
        owner = int(regions[:, int(0.2 * 12), int(0.7 * 12)].argmax())
        assert state(page)["token"] == str(owner)
        assert page.locator("h3", has_text=f"token {owner} of SGR").is_visible()
        tokens = content["models"][0]["kinds"]["tokens"]
        figures = dict(zip(texts(page, ".figures dt"), texts(page, ".figures dd")))
        assert figures["mass"] == f"{unpack(tokens['mass'])[owner]:.1f}"
        assert figures["peak"] == f"{unpack(tokens['peak'])[owner]:.2f}"
        x, y = unpack(tokens["centroids"])[owner]
        assert (figures["x"], figures["y"]) == (f"{x:.1f}", f"{y:.1f}")
        for letter, kind in (("C", "classes"), ("I", "instances")):
            for name, key in (("S", "semantics"), ("D", "diversity")):
                value = unpack(tokens[kind][key])[owner]
                assert figures[f"{name}_{letter}"] == f"{value:.2f}"
        assert figures["share_I"] == f"{100 * unpack(tokens['instances']['share'])[owner]:.0f} %"
        matched = unpack(tokens["components"])[owner]
        names = content["models"][0]["components"]["names"]
        overlap = unpack(tokens["overlaps"])[owner]
        expected = (names[matched], f"{overlap:.2f}") if matched >= 0 else ("–", "–")
        assert (figures["component"], figures["IoU"]) == expected

    def test_the_heat_map_is_the_region(self, open_page, regions):
        page = open_page("view=image&token=4&models=0")
        page.wait_for_function("document.querySelector('.frame .heat').width == 12")
        alpha = np.reshape(page.evaluate(HEAT), (12, 12, 4))[..., 3]
        expected = 0.8 * 255 * np.sqrt(regions[4] / 255)
        np.testing.assert_allclose(alpha, expected, atol=1)
        page.get_by_label("brightest at its peak").check()
        alpha = np.reshape(page.evaluate(HEAT), (12, 12, 4))[..., 3]
        assert alpha.max() == round(0.8 * 255)
        page.get_by_label("as cells").check()
        assert page.locator(".heat.cells").count() == 1

    def test_coarse_regions_are_laid_among_the_others(
        self, open_page, explorer, content, regions, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(image_data, "REGION_CHARACTERS", 1500)
        monkeypatch.setattr(image_data, "COARSE_CELLS", 3)
        folder = tmp_path / "explorer"
        shutil.copytree(explorer, folder)
        tokens = content["models"][0]["kinds"]["tokens"]
        order = np.argsort(-unpack(tokens["mass"]) * unpack(tokens["peak"]))
        tokens.update(image_data.region_content(regions / 255, order))
        write_script(folder / "data" / "00000.js", "explorerImage", 0, content)
        fine, coarse = (int(order[place]) for place in (0, -1))
        for token, side in ((fine, 1), (coarse, 4)):
            page = open_page(f"view=image&models=0&token={token}", folder=folder)
            blocks = regions[token].reshape(12 // side, side, 12 // side, side).mean(axis=(1, 3))
            expected = blocks.round().repeat(side, axis=0).repeat(side, axis=1)
            alpha = np.reshape(page.evaluate(HEAT), (12, 12, 4))[..., 3]
            np.testing.assert_allclose(alpha, 0.8 * 255 * np.sqrt(expected / 255), atol=1)
            note = page.get_by_text("stored in cells 4 times as wide and high").count()
            assert note == (side == 4)

    def test_histograms_of_a_token(self, open_page, content, index):
        page = open_page("view=image&token=6")
        histograms = content["models"][0]["kinds"]["tokens"]["classes"]
        row = unpack(histograms["values"])[6] / 65535
        bars = page.get_by_role("list", name="Classes", exact=True)
        best = int(row.argmax())
        assert (
            bars.locator(".name").first.inner_text()
            == (index["classes"][histograms["labels"][best]])
        )
        assert bars.locator(".value").first.inner_text() == f"{100 * row[best]:.1f} %"
        assert page.get_by_role("list", name="Instances").locator("li").count() >= 1

    def test_attention_by_layer_and_head(self, open_page, content):
        page = open_page("view=image&token=6")
        attention = content["models"][0]["kinds"]["tokens"]["attention"]
        place = unpack(attention["tokens"]).tolist().index(6)
        for layer, head in ((1, "mean"), (0, "2"), (1, "3")):
            page.get_by_label("layer", exact=True).select_option(label=str(layer + 1))
            page.get_by_label("head", exact=True).select_option(label=head)
            number = 4 if head == "mean" else int(head) - 1
            for direction, name in (("to", "attends to"), ("from", "is attended to by")):
                weights = unpack(attention[direction]["weights"])[layer, number, place] / 255
                listed = page.get_by_role("list", name=name)
                shown = listed.locator(".value").first.inner_text()
                assert shown == f"{100 * weights.max():.1f} %"
        assert state(page)["attention"] == "1.2"
        button = page.get_by_role("list", name="attends to").locator("button").first
        token = button.inner_text().split()[0]
        button.click()
        assert state(page)["token"] == token

    def test_tokens_sorted_and_filtered(self, open_page, content):
        page = open_page("view=image")
        tokens = content["models"][0]["kinds"]["tokens"]
        first = page.locator(".list tbody button")
        for head, key in (("mass", "mass"), ("peak", "peak")):
            page.get_by_role("button", name=head, exact=True).click()
            assert int(first.first.inner_text()) == unpack(tokens[key]).argmax()
            page.get_by_role("button", name=head, exact=True).click()
            assert int(first.first.inner_text()) == unpack(tokens[key]).argmin()
        page.get_by_role("button", name="S_C", exact=True).click()
        entropies = unpack(tokens["classes"]["semantics"])
        assert int(first.first.inner_text()) == entropies.argmin()
        assert state(page)["order"] == "S_C"
        page.get_by_label("show").select_option("matched")
        matched = (unpack(tokens["components"]) >= 0).sum()
        assert first.count() == matched
        name = content["models"][0]["components"]["names"][0]
        page.get_by_label("Filter tokens").fill(name)
        shown = texts(page, ".list tbody tr")
        assert shown and all(name in row for row in shown)
        assert page.locator(":focus").input_value() == name

    def test_bounds_of_numbers_and_names(self, open_page, content, index):
        page = open_page("view=image&order=token")
        tokens = content["models"][0]["kinds"]["tokens"]
        columns = {key: unpack(tokens[key]) for key in ("mass", "peak", "overlaps")}
        columns["D_I"] = unpack(tokens["instances"]["diversity"])
        x, y = unpack(tokens["centroids"]).T
        shares = unpack(tokens["classes"]["values"]) / 65535
        classes = [index["classes"][label] for label in tokens["classes"]["labels"]]
        best = np.array(classes)[shares.argmax(axis=1)]
        mass, diversity, share = np.median(columns["mass"]), np.median(columns["D_I"]), 0.3
        field = page.get_by_label("Filter tokens")
        field.focus()
        node = field.element_handle()
        for text, expected in {
            f"mass>{mass}": columns["mass"] > mass,
            f"MASS <= {mass} d_i>={diversity}": (columns["mass"] <= mass)
            & (columns["D_I"] >= diversity),
            "share<30%": shares.max(axis=1) < share,
            "share<0,3": shares.max(axis=1) < share,
            "iou<=1": columns["overlaps"] >= 0,
            "token=7": np.arange(len(x)) == 7,
            f"x>{x.mean()} y<{y.mean()}": (x > x.mean()) & (y < y.mean()),
            f"class:{best[0]}": best == best[0],
        }.items():
            field.fill(text)
            assert texts(page, ".list tbody button") == [str(i) for i in np.flatnonzero(expected)]
            assert state(page)["filter"] == text and not texts(page, ".problem")[0]
            assert texts(page, ".list [role=status]")[0].startswith(f"{expected.sum()} of ")
        # Somebody who types keeps the field, which a phone's keyboard and an input method need.
        assert node.evaluate("one => one === document.activeElement")

    def test_what_a_filter_cannot_say(self, open_page):
        page = open_page("view=image")
        field = page.get_by_label("Filter tokens")
        for text, problem in {
            "mass>": "mass> needs a number, as in mass>0.5",
            "mass>much": "mass> needs a number, as in mass>0.5",
            "size>3": "no column “size”: there are token, class, share, ",
            "class>3": "class holds names: write class:sky",
        }.items():
            field.fill(f"token=7 {text}")
            assert page.locator(".list .problem").inner_text().startswith(problem)
            assert field.get_attribute("aria-invalid") == "true"
            assert texts(page, ".list tbody button") == ["7"]
        # Quotes, also those of phones, hold what would be a bound.
        for text in (f'"{HOSTILE}"', f"“{HOSTILE}”"):
            field.fill(text)
            assert not page.locator(".list .problem").inner_text()
            assert field.get_attribute("aria-invalid") == "false"
            assert all(HOSTILE in row for row in texts(page, ".list tbody tr"))

    def test_kinds_and_models(self, open_page, content):
        page = open_page("view=image")
        page.get_by_label("kind").select_option("queries")
        queries = content["models"][0]["kinds"]["queries"]["regions"]["shape"][0]
        assert page.locator(".list tbody tr").count() == queries
        page.get_by_label("of the model").select_option(label="GloRe")
        page.locator(".list tbody button").first.click()
        assert page.locator(".pane h3", has_text=re.compile("query .* of GloRe")).count() == 1
        page.get_by_label("of the model").select_option(label="FCN")
        assert "no tokens" in page.locator(".list").inner_text()
        page.get_by_role("checkbox", name="SGR").uncheck()
        assert page.locator("figcaption b").all_inner_texts() == ["GloRe", "FCN"]

    def test_the_nearest_token_of_another_model(self, open_page, content):
        page = open_page("view=image&token=5")
        own, others = (
            unpack(content["models"][model]["kinds"]["tokens"]["regions"]).astype(float)
            for model in (0, 1)
        )
        overlaps = [
            np.minimum(own[5], other).sum() / max(np.maximum(own[5], other).sum(), 1)
            for other in others
        ]
        best = int(np.argmax(overlaps))
        note = page.locator("figcaption .note").nth(1).inner_text()
        assert note == f"closest: token {best}, overlap {100 * overlaps[best]:.0f} %"

    def test_the_nearest_token_is_that_of_the_model_that_is_asked(
        self, open_page, explorer, content, tmp_path
    ):
        """A third model has the tokens of the first one, in the opposite order."""
        folder = tmp_path / "explorer"
        shutil.copytree(explorer, folder)
        tokens = dict(content["models"][0]["kinds"]["tokens"])
        regions = unpack(tokens["regions"])[::-1]
        tokens["regions"] = pack(regions)
        content["models"][2]["kinds"] = {"tokens": tokens}
        write_script(folder / "data" / "00000.js", "explorerImage", 0, content)
        twin = len(regions) - 1 - 5
        expected = open_page(f"view=image&token={twin}").locator("figcaption .note").nth(1)
        page = open_page("view=image&token=5", folder=folder)
        note = page.locator("figcaption .note").nth(1)
        before = note.inner_text()
        page.get_by_label("of the model").select_option(label="FCN")
        page.locator(".list tbody [data-key=row5]").click()
        assert note.inner_text() == expected.inner_text() != before

    def test_layers(self, open_page, content):
        page = open_page("view=image&models=0")
        script = """() => {
          const canvas = document.querySelector('.frame .map');
          if (!canvas.width) return [];
          const context = canvas.getContext('2d');
          return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
        }"""
        seen = {}
        for layer in ("Image", "Labels", "Components", "Instances", "Prediction", "Errors"):
            page.get_by_label(layer, exact=True).check()
            assert state(page).get("layer", "labels") == layer.lower()
            seen[layer] = np.array(page.evaluate(script)).reshape(-1, 4)
        assert not len(seen["Image"])
        maps = [seen[layer].tobytes() for layer in list(seen)[1:]]
        assert len(set(maps)) == len(maps)
        labels = unpack(content["labels"]).ravel()
        wrong = (labels > 0) & (labels != unpack(content["models"][0]["prediction"]).ravel())
        dark = (seen["Errors"][:, :3] < 20).all(axis=1) & (seen["Errors"][:, 3] > 0)
        assert not dark[wrong].any() and dark[(labels > 0) & ~wrong].all()

    def test_layers_of_images_without_labels(self, open_page, awkward):
        page = open_page("view=image", folder=awkward)
        page.wait_for_selector(".legend")
        assert page.get_by_label("Prediction", exact=True).is_checked()
        assert page.evaluate("document.querySelector('.frame .map').width") > 0
        page.get_by_role("button", name="next image").click()
        page.wait_for_selector(".legend", state="detached")
        assert page.get_by_label("Image", exact=True).is_checked()
        assert page.evaluate("document.querySelector('.frame .map').width") == 0

    def test_a_class_alone(self, open_page):
        page = open_page("view=image")
        button = page.locator(".legend button").first
        button.click()
        assert page.locator(".legend button").first.get_attribute("aria-pressed") == "true"
        assert "only" in state(page)
        page.locator(".legend button").first.click()
        assert "only" not in state(page)

    def test_a_model_without_tokens_has_no_heat(self, open_page):
        page = open_page("view=image&models=2&model=2&token=3")
        assert page.locator(".frame .heat").is_hidden()
        assert "Click a token" in page.locator(".side").inner_text()


class TestConcepts:
    def test_sorted_filtered_and_followed(self, open_page, index):
        page = open_page("view=concepts")
        concepts = index["models"][0]["kinds"]["tokens"]
        assert page.locator("tbody tr").count() == concepts["count"]
        page.get_by_role("button", name="mass").click()
        first = int(page.locator("tbody a").first.inner_text())
        assert first == unpack(concepts["mass"]).argmax()
        least = np.median(unpack(concepts["mass"]))
        page.get_by_label("Filter concepts").fill(f"mass>{least}")
        assert page.locator("tbody tr").count() == (unpack(concepts["mass"]) > least).sum()
        page.locator("tbody a").first.click()
        page.wait_for_selector(".crops")
        assert state(page)["view"] == "concept" and state(page)["token"] == str(first)

    def test_one_over_all_images(self, open_page, index):
        page = open_page("view=concept")  # the first one
        page.locator(".crops canvas[data-heat]").nth(4).wait_for()
        page = open_page("view=concept&token=02")
        concepts = index["models"][0]["kinds"]["tokens"]
        best = unpack(concepts["best"])[2]
        assert texts(page, ".crops .name") == [index["images"][one]["name"] for one in best]
        label, share = concepts["classes"][2][0]
        bars = page.get_by_role("list", name="classes over all images")
        assert bars.locator(".name").first.inner_text() == index["classes"][label]
        assert bars.locator(".value").first.inner_text() == f"{100 * share:.1f} %"
        figures = dict(zip(texts(page, ".figures dt"), texts(page, ".figures dd")))
        assert figures["active in"] == f"{unpack(concepts['active'])[2]} of 5 images"
        page.locator(".crops canvas[data-heat]").nth(4).wait_for()
        page.locator(".crops a").first.click()
        page.wait_for_selector(".frame")
        assert state(page)["image"] == str(best[0]) if best[0] else "image" not in state(page)
        assert state(page)["token"] == "2"

    def test_other_models_and_neighbours(self, open_page):
        page = open_page("view=concept&token=2")
        page.get_by_role("button", name="next concept").click()
        assert page.locator("h2").first.inner_text() == "Concept 3 of SGR"
        page.get_by_label("Model").select_option(label="GloRe")
        assert page.locator("h2").first.inner_text() == "Concept 3 of GloRe"
        page.get_by_label("Model").select_option(label="FCN")
        assert "no concept 3" in page.locator("main").inner_text()


class TestKeyboard:
    def test_images_layers_and_tokens(self, open_page):
        page = open_page("view=image")
        page.keyboard.press("ArrowRight")
        assert state(page)["image"] == "1"
        page.keyboard.press("ArrowLeft")
        assert state(page).get("image", "0") == "0"
        page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="previous image").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")  # the first image has no previous one
        assert state(page).get("image", "0") == "0"
        assert page.locator(":focus").get_attribute("aria-label") == "previous image"
        assert page.locator(":focus").get_attribute("aria-disabled") == "true"
        page.keyboard.press("5")
        assert state(page)["layer"] == "prediction"
        page.wait_for_selector(".list tbody button")
        order = texts(page, ".list tbody button")
        page.keyboard.press("ArrowDown")
        assert state(page)["token"] == order[0]
        page.keyboard.press("ArrowDown")
        assert state(page)["token"] == order[1]
        page.keyboard.press("f")
        page.wait_for_selector(".crops")
        page.keyboard.press("Escape")
        assert state(page)["view"] == "concepts"
        page.keyboard.press("i")
        page.wait_for_selector(".gallery")
        page.get_by_label("Sort images").press("c")
        assert state(page).get("view", "images") == "images"
        page.get_by_label("Sort images").blur()
        page.keyboard.press("c")
        assert state(page)["view"] == "concepts"
        page.keyboard.press("/")
        page.keyboard.type("sky")
        assert page.get_by_label("Filter concepts").input_value() == "sky"

    def test_cells_of_an_image(self, open_page, regions):
        page = open_page("view=image")
        frame(page).focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        owner = int(regions[:, 5, 9].argmax())
        assert state(page)["token"] == str(owner)
        assert state(page).get("image", "0") == "0"

    def test_help(self, open_page):
        page = open_page()
        page.keyboard.press("?")
        assert page.get_by_role("dialog").is_visible()
        terms = texts(page, "dialog dt")
        page.keyboard.press("Escape")
        assert page.get_by_role("dialog").count() == 0
        page.keyboard.press("2")
        for view in ("image", "concepts"):
            page.goto(page.url.partition("#")[0] + f"#view={view}")
            page.wait_for_selector("thead th")
            assert set(texts(page, "thead th")) <= set(terms)

    def test_everything_is_reached_by_tabs(self, open_page):
        page = open_page("view=image&token=1")
        page.wait_for_selector(".list tbody button")
        script = """() => [...document.querySelectorAll('button, a, input, select, summary')]
          .filter(one => one.tabIndex < 0 && !one.disabled).length"""
        assert page.evaluate(script) == 0


class TestAddress:
    def test_a_link_leads_to_the_same_view(self, open_page):
        page = open_page("view=image")
        page.get_by_label("Prediction").check()
        page.get_by_role("button", name="mass", exact=True).click()
        page.locator(".list tbody button").nth(3).click()
        page.get_by_label("as cells").check()
        page.get_by_role("button", name="next image").click()
        page.wait_for_function("document.querySelector('h2').innerText.includes('onerror')")
        again = open_page(page.evaluate("location.hash.slice(1)"))
        for one in (page, again):
            one.wait_for_selector(".list tbody tr[aria-current=true]")
        assert again.locator("main").inner_text() == page.locator("main").inner_text()

    @pytest.mark.parametrize(
        "nonsense",
        ["view=nothing", "view=image&image=99&token=-1&model=7", "view=image&image=x&layer=y"]
        + ["view=concept&token=9999", "images=iou.99.99", "view=concepts&model=z", "%%%=&&"]
        # Every object of JavaScript has these names.
        + ["view=constructor", "view=concepts&kind=toString", "view=image&kind=constructor"]
        + ["view=image&token=1.5", "view=concept&token=-1", "view=image&token=1&attention=-1.0"]
        + ["view=image&attention=7.7&order=nothing&token=1&kind=other&models=9,x"],
    )
    def test_nonsense_is_survived(self, open_page, nonsense):
        page = open_page(nonsense)
        page.wait_for_timeout(100)
        assert "cannot be shown" not in page.locator("main").inner_text()
        if nonsense.startswith("view=image"):
            page.wait_for_selector(".frame")


class TestTrust:
    @pytest.mark.parametrize(
        "one",
        ["view=images", "view=image&image=1&token=1", "view=concepts", "view=concept&token=0"],
    )
    def test_names_are_texts(self, open_page, one):
        page = open_page(one)
        page.wait_for_timeout(150)
        if one.startswith("view=image"):
            assert HOSTILE in page.locator("main").inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[onerror], img[src=x]").count() == 0

    def test_only_the_folder_is_allowed(self, open_page):
        page = open_page()
        policy = page.locator("meta[http-equiv]").get_attribute("content")
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert not any("unsafe" in rule or "http" in rule or "data:" in rule for rule in rules)
        script = """() => new Promise(resolve => {
          document.addEventListener('securitypolicyviolation', e => resolve(e.effectiveDirective));
          const one = document.createElement('div');
          one.innerHTML = '<img src="https://example.org/a.png" onerror="window.hacked = 1">';
          document.body.append(one);
        })"""
        assert page.evaluate(script) in ("img-src", "script-src-attr")
        assert page.evaluate("window.hacked") is None
        assert open_page.complaints
        open_page.complaints.clear()

    def test_sources_have_no_html_in_strings(self):
        for path in (WEB / "src").glob("*.ts"):
            text = path.read_text(encoding="utf-8")
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
                assert word not in text, path


class TestLooks:
    @pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
    @pytest.mark.parametrize("name", STATES)
    def test_nothing_is_wider_than_the_page(self, open_page, name, scheme, size):
        page = open_page(STATES[name], size=size, color_scheme=scheme)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        if page.locator(".frame").count():
            assert frame(page).bounding_box()["width"] > 300

    def test_long_names_and_tall_images_on_a_narrow_phone(self, open_page, awkward):
        page = open_page(folder=awkward, size=(320, 700))
        page.locator(".gallery img").first.evaluate("one => one.decode()")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert page.locator(".gallery img").first.bounding_box()["height"] < 300
        page.locator(".gallery a").first.click()
        page.wait_for_selector(".legend")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        box = frame(page).bounding_box()
        assert box["height"] < 0.86 * 700 and abs(box["height"] / box["width"] - 10) < 0.1

    @pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
    @pytest.mark.parametrize("name", ["class", "image", "concepts", "concept"])
    def test_accessible(self, open_page, axe, name, scheme, size):
        """axe-core finds no violation of its rules, those of contrast (AA) among them."""
        page = open_page(STATES[name], size=size, color_scheme=scheme)
        page.wait_for_timeout(100)
        page.evaluate(axe.read_text(encoding="utf-8") + "; 0")
        found = page.evaluate("axe.run({preload: false})")
        problems = {
            one["id"]: [node["html"] for node in one["nodes"]] for one in found["violations"]
        }
        assert not problems, json.dumps(problems, indent=1)

    def test_the_switch_of_the_theme(self, open_page):
        page = open_page(color_scheme="light")
        page.get_by_role("button", name="Light / dark").click()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background))) < 60
        page.reload()
        page.wait_for_selector(".gallery")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"

    def test_the_colours_of_the_dataset(self, open_page, index):
        page = open_page("view=image")
        script = "getComputedStyle(document.querySelector('.legend .swatch')).backgroundColor"
        for choice in ("safe", "dataset"):
            page.wait_for_selector(".legend")
            color = [int(one) for one in re.findall(r"\d+", page.evaluate(script))]
            assert color in index["colors"][choice]
            page.get_by_role("button", name="Dataset's colours").click()


def test_an_unfinished_explorer_says_so(open_page, explorer, index, tmp_path):
    for name in ("index.html", "explorer.js", "explorer.css"):
        (tmp_path / name).write_bytes((explorer / name).read_bytes())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.js").write_text("explorerIndex(null);\n")
    page = open_page(folder=tmp_path)
    assert "not written to its end" in page.get_by_role("alert").inner_text()
    index["images"] = []
    write_script(tmp_path / "data" / "index.js", "explorerIndex", index)
    page = open_page("view=image", folder=tmp_path)
    assert "There are no images yet." in page.locator("main").inner_text()
