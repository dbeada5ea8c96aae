"""The losses of nodes against hand-made values, literal loops and the public modules."""

import math

import pytest
import torch
from torch.nn import functional as F

from hssn import NodeIndex, TreeLoss, level_cross_entropies, node_losses
from hssn.region_mutual_information import region_mutual_information
from sgr.data.class_tree import ClassTree

# cat, dog, car, animal, vehicle, thing; the label is cat.
SCORES = torch.tensor([0.6, 0.3, 0.2, 0.5, 0.4, 0.9])


def literal(logits, labels, index, loss, gamma=2.0):
    """Eq. 4 to 6 as they are written: over pixels and nodes, with all ancestors and descendants."""
    tree = index.tree
    paths = [set(path) for path in zip(*tree.ancestors)]
    num_nodes = len(tree.names)
    ancestors = [{node} for node in range(num_nodes)]
    for path in zip(*tree.ancestors):
        for place, node in enumerate(path):
            ancestors[node] |= set(path[place:])
    descendants = [
        {other for other in range(num_nodes) if node in ancestors[other]}
        for node in range(num_nodes)
    ]
    levels = [level for level, size in enumerate(tree.sizes) for _ in range(size)]
    scores = logits.sigmoid()
    totals = []
    for image, row, column in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        pixel = scores[image, :, row, column]
        sums = [torch.zeros(()) for _ in tree.sizes]
        for node in range(num_nodes):
            is_positive = node in paths[labels[image, row, column]]
            if loss == "bce":
                p = pixel[node]
            elif is_positive:
                p = torch.stack([pixel[each] for each in ancestors[node]]).min()
            else:
                p = torch.stack([pixel[each] for each in descendants[node]]).max()
            right = p if is_positive else 1 - p
            factor = (1 - right) ** gamma if loss == "focal_tree_min" else 1
            sums[levels[node]] = sums[levels[node]] - factor * right.log()
        totals.append(torch.stack(sums))
    return torch.stack(totals, dim=1)  # (levels, pixels)


@pytest.mark.parametrize(
    ("loss", "expected"), [("tree_min", 2.5823), ("focal_tree_min", 0.4704), ("bce", 2.4000)]
)
def test_example_by_hand(example, loss, expected):
    logits = torch.logit(SCORES).view(1, 6, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    total = sum(each.sum() for each in node_losses(logits, labels, example, loss=loss))
    assert round(float(total), 4) == expected


@pytest.mark.parametrize("loss", ["tree_min", "focal_tree_min", "bce"])
def test_sweeps_are_the_equations(three_levels, loss):
    """Values and gradients; of a tree with nodes that have a single child, too."""
    other = ClassTree.parse({"a": {"b": ["0", "2"]}, "c": ["1", "3"], "4": None}, list("01234"))
    for index in (three_levels, NodeIndex(other)):
        logits = (3 * torch.randn(2, index.num_nodes, 3, 4)).double().requires_grad_()
        labels = torch.randint(index.tree.num_classes, (2, 3, 4))
        values = torch.stack(node_losses(logits, labels, index, loss=loss))
        expected = literal(logits, labels, index, loss)
        torch.testing.assert_close(values.flatten(1), expected)
        weights = torch.rand_like(expected)
        (gradient,) = torch.autograd.grad((values.flatten(1) * weights).sum(), logits)
        (wanted,) = torch.autograd.grad((expected * weights).sum(), logits)
        torch.testing.assert_close(gradient, wanted)


def test_properties(three_levels):
    labels = torch.randint(7, (2, 5, 6))
    logits = torch.randn(2, 12, 5, 6)

    def total(values, loss):
        return torch.stack(node_losses(values, labels, three_levels, loss=loss)).sum(0)

    # A certain prediction that obeys the tree costs nothing.
    nodes = three_levels.ancestors[:, labels].transpose(0, 1)
    certain = torch.full_like(logits, -40.0).scatter(1, nodes, 40.0)
    assert total(certain, "tree_min").max() < 1e-12
    # Never less than the plain loss, and equal where scores obey the tree: each parent has the
    # largest score of its children.
    assert (total(logits, "tree_min") >= total(logits, "bce")).all()
    obedient = logits[:, :7]
    for level in (1, 2):
        best = three_levels.children_of(level, obedient[:, -three_levels.tree.sizes[level - 1] :])
        highest = torch.stack([each.amax(1) for each in best], dim=1)
        obedient = torch.cat([obedient, highest], dim=1)
    torch.testing.assert_close(total(obedient, "tree_min"), total(obedient, "bce"))


def test_order_of_the_classes_plays_no_role(three_levels):
    """Classes and labels are permuted together; upper nodes follow the smallest label below."""
    names = [str(label) for label in range(7)]
    order = [3, 6, 0, 5, 1, 4, 2]  # the class with the new label 0 had 3
    children = {"m0": ["0"], "m1": ["1", "2", "3", "4"], "m2": ["5", "6"]}
    content = {"top": [{"m0": children["m0"]}], "body": [{k: children[k]} for k in ("m1", "m2")]}
    tree = ClassTree.parse(content, names)
    turned = ClassTree.parse(content, [names[old] for old in order])
    places = [tree.names.index(name) for name in turned.names]
    logits, labels = torch.randn(2, 12, 5, 6), torch.randint(7, (2, 5, 6))
    new_labels = torch.tensor(order).argsort()[labels]
    first, second = NodeIndex(tree), NodeIndex(turned)
    for loss in ("tree_min", "focal_tree_min"):
        torch.testing.assert_close(
            node_losses(logits[:, places], new_labels, second, loss=loss),
            node_losses(logits, labels, first, loss=loss),
        )
    torch.testing.assert_close(
        second.path_scores(logits[:, places]), first.path_scores(logits)[:, order]
    )


def test_gradient_goes_to_one_node(three_levels):
    """As many nodes have a gradient as there are different minima and maxima."""
    logits = torch.tensor([5.0, 1, 0, 0, 0, 0, 0, -1, 2, 3, -2, 4]).view(1, 12, 1, 1)
    logits.requires_grad_()
    labels = torch.ones(1, 1, 1, dtype=torch.long)  # path 1, 8, 11
    sum(each.sum() for each in node_losses(logits, labels, three_levels)).backward()
    moved = logits.grad.flatten().nonzero().flatten().tolist()
    # Of the path, 1 is the least of itself, and 8, 11 of theirs. Of class 0 and its ancestors, it
    # is always 0.
    assert moved == [0, 1, 2, 3, 4, 5, 6, 8, 9, 11]


def test_large_logits():
    """No infinite loss and no nan, where a sigmoid is 0 or 1 in float32."""
    index = NodeIndex(ClassTree.parse({"a": ["0", "1"], "b": ["2"]}, list("012")))
    logits = torch.tensor([-200.0, 300.0, 90.0, -1000.0, 500.0]).view(1, 5, 1, 1).requires_grad_()
    for loss in ("tree_min", "focal_tree_min"):
        values = node_losses(logits, torch.zeros(1, 1, 1, dtype=torch.long), index, loss=loss)
        (gradient,) = torch.autograd.grad(sum(each.sum() for each in values), logits)
        assert all(each.isfinite().all() for each in values) and gradient.isfinite().all()


def test_cross_entropy_of_levels(three_levels):
    logits, labels = torch.randn(2, 12, 5, 6), torch.randint(7, (2, 5, 6))
    labels[0, :2] = 255
    parents = torch.tensor([0, 1, 1, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 1, 1, 1])
    is_labelled = labels != 255
    pixels = logits.permute(0, 2, 3, 1)[is_labelled]
    expected = [
        F.cross_entropy(pixels[:, :7], labels[is_labelled], reduction="sum"),
        F.cross_entropy(pixels[:, 7:10], parents[0][labels[is_labelled]], reduction="sum"),
        F.cross_entropy(pixels[:, 10:], parents[1][labels[is_labelled]], reduction="sum"),
    ]
    torch.testing.assert_close(level_cross_entropies(logits, labels, three_levels), expected)
    # A number that is a superclass, too, can stand for ignored pixels.
    labels = labels.where(is_labelled, 1)
    sums = level_cross_entropies(logits, labels, three_levels, ignore_value=1)
    kept = labels != 1
    pixels = logits.permute(0, 2, 3, 1)[kept]
    wanted = F.cross_entropy(pixels[:, 7:10], parents[0][labels[kept]], reduction="sum")
    torch.testing.assert_close(sums[1], wanted)


def losses_of(tree, logits, labels, **options):
    criterion = TreeLoss(tree.num_classes, tree=tree, **options)
    return criterion(logits, labels, 1, features=logits)


def test_losses_are_exact_under_autocast(example):
    """Logits in bfloat16 are brought to float32, and so is all that follows."""
    logits, labels = 8 * torch.randn(2, 6, 8, 9), torch.randint(3, (2, 8, 9))
    half = logits.bfloat16()
    expected = losses_of(example.tree, half.float(), labels, rmi_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(example.tree, half, labels, rmi_weight=1.0)
    assert all(each.dtype == torch.float32 for each in found.values())
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_public_two_levels(reference, tree_of):
    """Cityscapes' tree: losses, path scores and predictions; ignored pixels are in no term."""
    file = reference("two_levels")
    tree = tree_of([19 + parent for parent in file.config["parents"]] + [-1] * 7, 19)
    assert [tree.names[place] for place in range(19, 26)] == [str(each) for each in range(19, 26)]
    index = NodeIndex(tree)
    for name, loss in (("tree_min", "tree_min"), ("focal_tree_min", "focal_tree_min")):
        for suffix in ("", "_void"):
            labels = getattr(file, f"input_labels{suffix}")
            found = losses_of(tree, file.input_logits, labels, loss=loss, ce_weight=0.0)
            expected = getattr(file, f"output_{name}{suffix}")
            torch.testing.assert_close(found["loss_tree"], expected, atol=1e-5, rtol=1e-5)
    found = losses_of(tree, file.input_logits, file.input_labels)
    total = sum(found.values()) + 0.25 * file.output_triplet
    torch.testing.assert_close(total, file.output_total_step40000, atol=1e-5, rtol=1e-5)
    scores = index.path_scores(file.input_logits)
    torch.testing.assert_close(scores, file.output_path_scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.argmax(1), file.output_prediction)
    assert torch.equal(index.groups[1][file.input_labels], file.output_top_labels)


def test_public_three_levels(reference, tree_of, three_levels):
    file = reference("three_levels")
    assert tree_of(file.config["parents"], 7) == three_levels.tree
    for name, loss in (("tree_min", "tree_min"), ("focal_tree_min", "focal_tree_min")):
        options = {"loss": loss, "ce_weight": 0.0, "weight": 1.0}
        found = losses_of(three_levels.tree, file.input_logits, file.input_labels, **options)
        expected = getattr(file, f"output_literal_{name}")
        torch.testing.assert_close(found["loss_tree"], expected, atol=1e-5, rtol=1e-5)
    prediction = three_levels.path_scores(file.input_logits).argmax(1)
    assert torch.equal(prediction, file.output_prediction)
    assert torch.equal(three_levels.groups[1][file.input_labels], file.output_mid_labels)
    assert torch.equal(three_levels.groups[2][file.input_labels], file.output_top_labels)


def test_public_recipe_for_persons(reference, three_levels):
    """The region mutual information, and the sum of all terms at the end of the schedule."""
    file = reference("rmi")
    options = {"loss": "focal_tree_min", "weight": 0.5, "rmi_weight": 1.0}
    found = losses_of(three_levels.tree, file.input_logits, file.input_labels, **options)
    torch.testing.assert_close(found["loss_tree_rmi"], file.output_rmi, atol=1e-4, rtol=1e-5)
    total = sum(found.values()) - 0.5 * found["loss_tree_rmi"] + 0.5 * file.output_triplet
    torch.testing.assert_close(total, file.output_total, atol=1e-4, rtol=1e-4)


def test_scores_on_the_path(example):
    logits = torch.randn(1, 6, 2, 3)
    scores = logits.sigmoid()
    paths = ((0, 3, 5), (1, 3, 5), (2, 4, 5))
    expected = torch.stack([scores[:, list(path)].sum(1) for path in paths], dim=1)
    torch.testing.assert_close(example.path_scores(logits, "scores"), expected)
    loss = TreeLoss(3, tree=example.tree, path_score="scores")
    shares = loss.class_logits(logits).softmax(1)
    torch.testing.assert_close(shares, expected / expected.sum(1, keepdim=True))
    assert loss.class_logits(logits - 1000).isfinite().all()


def test_weights_and_names(example):
    logits, labels = torch.randn(1, 6, 8, 9), torch.randint(3, (1, 8, 9))
    plain = losses_of(example.tree, logits, labels, weight=1.0, rmi_weight=1.0)
    names = ["loss_tree", "loss_sem_seg", "loss_sem_seg_level2", "loss_sem_seg_level3"]
    assert list(plain) == [*names, "loss_tree_rmi"]
    weighted = losses_of(example.tree, logits, labels, weight=3.0, ce_weight=2.0, rmi_weight=0.5)
    factors = [3.0, 2.0, 2.0, 2.0, 0.5]
    for factor, name in zip(factors, plain):
        torch.testing.assert_close(weighted[name], factor * plain[name])
    assert list(losses_of(example.tree, logits, labels, weight=0.0)) == names[1:]
    assert list(losses_of(example.tree, logits, labels, ce_weight=0.0)) == names[:1]


def test_one_level_is_the_plain_loss():
    tree = ClassTree.parse(list("abc"), list("abc"))
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    found = losses_of(tree, logits, labels, weight=1.0, ce_weight=0.0)
    one_hot = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot)
    torch.testing.assert_close(found["loss_tree"], expected)


def test_all_ignored(example):
    logits = torch.randn(2, 6, 8, 9, requires_grad=True)
    labels = torch.full((2, 8, 9), 255)
    losses = losses_of(example.tree, logits, labels, rmi_weight=1.0)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert logits.grad.abs().max() == 0


def test_diverged_model_shows_in_the_losses(example):
    """A logit that is no number is one in every loss of its image, and no error."""
    logits = torch.randn(2, 6, 8, 9)
    labels = torch.randint(3, (2, 8, 9))
    logits[0, :, 2, 3] = torch.nan
    assert all(
        each.isnan() for each in losses_of(example.tree, logits, labels, rmi_weight=1).values()
    )
    targets = torch.zeros(2, 6, 8, 9)
    values = region_mutual_information(logits, targets, labels < 3)
    assert values.isnan().tolist() == [True, False]


def test_ignored_pixels_change_nothing(example):
    """Neither do their logits, and the labels stay as they are."""
    logits, labels = torch.randn(2, 6, 8, 9), torch.randint(3, (2, 8, 9))
    labels[:, 2:5] = 255
    before = labels.clone()
    first = losses_of(example.tree, logits, labels)
    assert torch.equal(labels, before)
    changed = torch.where((labels == 255)[:, None], 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(losses_of(example.tree, changed, labels), first)
    kept = [0, 1, 5, 6, 7]
    torch.testing.assert_close(losses_of(example.tree, logits[:, :, kept], labels[:, kept]), first)


def test_auxiliary_classifier_learns_the_classes(example):
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 8, 10))
    labels[0, 0] = 255
    (found,) = TreeLoss(3, tree=example.tree)(logits, labels, 2).values()
    up = F.interpolate(logits, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(found, F.cross_entropy(up, labels, ignore_index=255))


def test_levels_for_a_classifier(three_levels):
    """Outputs of level 1 are the classes, then come those of level 2."""
    loss = TreeLoss(7, tree=three_levels.tree)
    assert list(loss.levels) == [7, 3, 2]
    labels = torch.tensor([[[0, 4, 255], [6, 2, 1]]])
    expected = [
        [[[0, 4, -1], [6, 2, 1]]],
        [[[7, 8, -1], [9, 8, 8]]],
        [[[10, 11, -1], [11, 11, 11]]],
    ]
    assert loss.level_labels(labels).tolist() == expected


def test_mistakes(example):
    logits, labels = torch.randn(1, 6, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long)
    for stray in (3, -1, 254):
        labels[0, 1, 1] = stray
        with pytest.raises(ValueError, match=f"have {stray}, which is no class \\(0 to 2\\)"):
            losses_of(example.tree, logits, labels)
        with pytest.raises(ValueError, match=f"have {stray}, which is no class"):
            TreeLoss(3, tree=example.tree).level_labels(labels)
    for options in ({"loss": "tree_max"}, {"path_score": "sum"}):
        with pytest.raises(ValueError, match="MODEL.HSSN.*it is one of"):
            TreeLoss(3, tree=example.tree, **options)
    for key in ("weight", "gamma", "ce_weight", "rmi_weight"):
        with pytest.raises(ValueError, match=f"MODEL.HSSN.{key.upper()} is nan"):
            TreeLoss(3, tree=example.tree, **{key: math.nan})
    with pytest.raises(ValueError, match="at least 7 pixels"):
        losses_of(example.tree, logits, labels * 0, rmi_weight=1.0)
