"""Models of the library timm as Detectron2 backbones."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..layers.checks import check_drop_path_rate
from .freezing import FreezableBackbone
from .timm_weights import adapt_timm_weights

NORMS = ("", "BN", "SyncBN", "FrozenBN")
# Gray levels by which a mean or a standard deviation may differ from that of the pretraining.
# Releases of the same weights differ by half of one.
PIXEL_TOLERANCE = 1.0


class TimmBackbone(FreezableBackbone):
    """A hierarchical model of timm without its classifier, for images of any size.

    "res2" is the feature at stride 4, "res3" the one at stride 8, and so on, as in a ResNet. Many
    models have "res1" at stride 2 too. The names stay with ``output_stride``, which lowers the
    strides of the last features. The parameters have timm's names behind ``net.``.

    When it is built, a small image goes through the model. So the features are known to have the
    strides that timm declares, and the gradients show which parameters a feature depends on.
    Parameters on which no feature depends are not trained.

    Args:
        name: a name of ``timm.list_models()``, with or without the tag of its weights. It brings no
            weights along. Names by which timm would fetch or read files, as "hf-hub:...", are
            refused.
        out_features: "res2" and so on. Stages behind the last of them are removed.
        output_stride: the largest stride: 8, 16 or 32. For less than 32 the model dilates its last
            stages, which not all models can.
        drop_path_rate: probability with which an image skips a residual branch of the last block in
            training. 0 leaves the model's default, which is 0 for nearly all.
        norm: "FrozenBN" makes batch norms constant, "SyncBN" shares their statistics between the
            workers. "BN" and "" leave the norms as they are.
        freeze_at: see :meth:`freeze`.
        options: further arguments of ``timm.create_model``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm cannot build such a model, the model does not take images of any size, its
            strides do not double, or an argument is out of range.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        norm: str = "",
        freeze_at: int = 0,
        in_channels: int = 3,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        _check(output_stride, drop_path_rate, norm)
        arguments = {
            **({"in_chans": in_channels} if in_channels != 3 else {}),
            **({"output_stride": output_stride} if output_stride != 32 else {}),
            **({"drop_path_rate": drop_path_rate} if drop_path_rate else {}),
            **(options or {}),
        }
        net = _create(name, arguments)
        self.pretrained_cfg = dict(net.pretrained_cfg)
        self._classifier = {name: value.shape for name, value in net.state_dict().items()}

        features = [dict(feature) for feature in net.feature_info]
        strides = [feature["reduction"] for feature in features]
        names = _name_features(name, strides, output_stride)
        unknown = [feature for feature in out_features if feature not in names]
        if unknown or not out_features:
            raise ValueError(
                f"out_features (MODEL.TIMM.OUT_FEATURES) is {list(out_features)}; {name} has: "
                f"{', '.join(names)}"
            )
        self._out_features = [feature for feature in names if feature in out_features]
        self._out_feature_channels = dict(zip(names, [feature["num_chs"] for feature in features]))
        self._out_feature_strides = dict(zip(names, strides))
        # Also with an output stride of less, because a model may halve its maps on the way.
        self._size_divisibility = max(32, *strides)

        self._names = names[: names.index(self._out_features[-1]) + 1]
        self._modules_of = dict(zip(names, [feature["module"] for feature in features]))
        # Of what is left, timm counts the features as before.
        net.prune_intermediate_layers(list(range(len(self._names))), prune_norm=True)
        self.net = _convert_norms(net, norm)
        self._first_users = self._find_users(name, in_channels)
        for parameter_name, parameter in self.net.named_parameters():
            parameter.requires_grad_(parameter_name in self._first_users)
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        timm = cfg.MODEL.TIMM
        return {
            "name": timm.NAME,
            "out_features": timm.OUT_FEATURES,
            "output_stride": timm.OUTPUT_STRIDE,
            "drop_path_rate": timm.DROP_PATH_RATE,
            "norm": timm.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "in_channels": input_shape.channels,
            "options": timm.OPTIONS,
        }

    def freeze(self, freeze_at: int = 0) -> TimmBackbone:
        """Do not train the first parts, as the method of Detectron2's ResNet.

        Dropped paths are off in them, and batch norms use their running statistics, as in
        evaluation. What was frozen before stays so. A line of the log tells what is frozen.

        Args:
            freeze_at: 0 or less freezes nothing, 1 the parts before the stage of "res2", 2 whatever
                "res2" depends on, and so on.

        Returns:
            The same backbone.
        """
        self._freeze_at = max(self._freeze_at, freeze_at)
        stages = [name for name in self._names if 2 <= int(name[3:]) <= max(self._freeze_at, 2)]
        # "res1" comes before the stage of "res2", and may be all that is left.
        last = stages[-1] if stages else self._names[-1]
        users = set(self._names[: self._names.index(last) + 1])
        frozen = {name for name, user in self._first_users.items() if user in users}
        if self._freeze_at == 1 and stages:
            stage = f"{self._modules_of[stages[0]]}."
            frozen = {name for name in frozen if not name.startswith(stage)}
        if self._freeze_at < 1:
            return self
        for name, parameter in self.net.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        self._frozen = [
            module
            for prefix, module in self.net.named_modules()
            if {name for name in self._first_users if name.startswith(f"{prefix}.")}
            and all(name in frozen for name in self._first_users if name.startswith(f"{prefix}."))
        ]
        logging.getLogger(__name__).info(
            "Not trained in %s are %d of %d parameter tensors: %s (MODEL.BACKBONE.FREEZE_AT %d; 0 "
            "trains all)",
            *(type(self.net).__name__, len(frozen), len(self._first_users)),
            "the stem" if self._freeze_at == 1 else f"all up to {last}",
            self._freeze_at,
        )
        return self.train(self.training)

    @property
    def size_divisibility(self) -> int:
        """What the sides of the images must be a multiple of, pixels."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, in_channels, H, W), normalised; H and W multiples of
                :attr:`size_divisibility`.

        Returns:
            For each of ``out_features`` (B, C, H / stride, W / stride).
        """
        return self._run(images, self._out_features)

    def _run(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        maps = self.net.forward_intermediates(
            images,
            indices=[self._names.index(name) for name in names],
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return {name: each.contiguous() for name, each in zip(names, maps)}

    def _find_users(self, name: str, in_channels: int) -> dict[str, str]:
        """Parameter -> the first feature that depends on it, in the order of the parameters."""
        height, width = 2 * self.size_divisibility, 3 * self.size_divisibility
        parameters = dict(self.net.named_parameters())
        training = self.net.training
        self.net.eval()
        with torch.enable_grad():
            try:
                features = self._run(torch.zeros(1, in_channels, height, width), self._names)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"timm's {name!r} (MODEL.TIMM.NAME) takes no image of {height} x {width} "
                    f"pixels, because its size is fixed: {error}. Choose another model. Some take "
                    "any size with an option (options, MODEL.TIMM.OPTIONS), as Swin does: "
                    "{strict_img_size: False}"
                ) from error
            users: dict[str, str] = {}
            for feature, maps in features.items():
                stride = self._out_feature_strides[feature]
                expected = (self._out_feature_channels[feature], height // stride, width // stride)
                if maps.shape[1:] != expected:
                    raise ValueError(
                        f"timm's {name!r} (MODEL.TIMM.NAME) puts out {tuple(maps.shape[1:])} "
                        f"instead of {expected} as {feature} of an image of {height} x {width} "
                        "pixels; choose another model"
                    )
                gradients = torch.autograd.grad(
                    maps.sum(), parameters.values(), retain_graph=True, allow_unused=True
                )
                for parameter, gradient in zip(parameters, gradients):
                    if gradient is not None:
                        users.setdefault(parameter, feature)
        self.net.train(training)
        return {parameter: users[parameter] for parameter in parameters if parameter in users}

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit the weights of a classifier of the same architecture to this backbone.

        See :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer`, which calls this, and
        :func:`~sgr.modeling.backbone.timm_weights.adapt_timm_weights`.
        """
        return adapt_timm_weights(self.net.state_dict(), self._classifier, f"{prefix}net.", state)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm exempts from weight decay, norms and biases aside.

        They are those that the model declares, and other vectors, such as scales of layers. See
        :mod:`sgr.engine.solver`, which treats norms and biases by their own keys.
        """
        declared = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        vectors = {
            name
            for name, parameter in self.net.named_parameters()
            if parameter.dim() <= 1 and not name.endswith((".weight", ".bias"))
        }
        return {f"net.{name}" for name in {*declared, *vectors}}

    def warn_of_other_pixels(
        self, image_format: str, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Log a warning if a config prepares images otherwise than the pretraining did.

        Args:
            image_format: INPUT.FORMAT.
            pixel_mean, pixel_std: MODEL.PIXEL_MEAN and PIXEL_STD, 0 to 255.
        """
        right = {
            "MODEL.PIXEL_MEAN": [255 * value for value in self.pretrained_cfg["mean"]],
            "MODEL.PIXEL_STD": [255 * value for value in self.pretrained_cfg["std"]],
        }
        given = {"MODEL.PIXEL_MEAN": pixel_mean, "MODEL.PIXEL_STD": pixel_std}
        wrong = [] if image_format == "RGB" else ["INPUT.FORMAT RGB"]
        for key, values in right.items():
            pairs = list(zip(values, given[key]))
            if len(pairs) == 3 and any(abs(a - b) > PIXEL_TOLERANCE for a, b in pairs):
                wrong.append(f"{key} {[round(value, 3) for value in values]}")
        if wrong:
            logging.getLogger(__name__).warning(
                "timm trained %s on images with %s, the config has INPUT.FORMAT %s, "
                "MODEL.PIXEL_MEAN %s and PIXEL_STD %s: set them to the former, on which the "
                "weights depend",
                *(self.pretrained_cfg.get("architecture", "the model"), ", ".join(wrong)),
                *(image_format, list(pixel_mean), list(pixel_std)),
            )


# Some versions of timm unpickle the file of checkpoint_path.
_OPTIONS_OF_FILES = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A classifier of timm, with random weights."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "the backbone 'build_timm_backbone' needs timm, which is not installed: "
            "pip install timm, or pip install -e '.[timm]'"
        ) from error
    of_files = sorted(_OPTIONS_OF_FILES & arguments.keys())
    if of_files:
        raise ValueError(
            f"options (MODEL.TIMM.OPTIONS) has {', '.join(of_files)}, by which timm itself would "
            "read or fetch files: load the weights into the model (MODEL.WEIGHTS), which reads "
            "them safely"
        )
    if ":" in name:
        raise ValueError(
            f"{name!r} (MODEL.TIMM.NAME) is a source from which timm itself would fetch or read a "
            "model: name an architecture of timm.list_models() in MODEL.TIMM.NAME, and its weights "
            "in MODEL.WEIGHTS, which takes hf-hub:OWNER/MODEL, too"
        )
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"timm has no model {name!r} (MODEL.TIMM.NAME); {hint}")
    try:
        net = timm.create_model(name, pretrained=False, **arguments)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"{key} {value}" for key, value in arguments.items()) or "no options"
        raise ValueError(
            f"timm cannot build {name!r} (MODEL.TIMM.NAME) with {given}: "
            f"{error or 'not supported'}; leave out what it does not know: "
            "output_stride 32, drop_path_rate 0.0, options "
            "(MODEL.TIMM.OUTPUT_STRIDE, DROP_PATH_RATE, OPTIONS)"
        ) from error
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise ValueError(
            f"timm's {name!r} (MODEL.TIMM.NAME) gives no features at strides; choose another"
        )
    return net


def _name_features(name: str, strides: Sequence[int], output_stride: int) -> list[str]:
    """ "res2" for stride 4, "res3" for the double of it, and so on."""
    first = math.log2(strides[0])
    largest = output_stride if output_stride < 32 else math.inf  # 32 is each model's own
    expected = [min(strides[0] * 2**index, largest) for index in range(len(strides))]
    if first % 1 or list(strides) != expected:
        raise ValueError(
            f"timm's {name!r} (MODEL.TIMM.NAME) has features at strides {list(strides)}, which "
            f"do not double up to {output_stride} (output_stride, MODEL.TIMM.OUTPUT_STRIDE); "
            "choose a hierarchical model, or one that can dilate its stages"
        )
    return [f"res{int(first) + index}" for index in range(len(strides))]


def _convert_norms(net: nn.Module, norm: str) -> nn.Module:
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    if norm == "FrozenBN":
        return freeze_batch_norm_2d(net)
    return convert_sync_batchnorm(net) if norm == "SyncBN" else net


def _check(output_stride: int, drop_path_rate: float, norm: str) -> None:
    if output_stride not in (8, 16, 32):
        raise ValueError(
            f"output_stride (MODEL.TIMM.OUTPUT_STRIDE) is {output_stride}; it must be 8, 16 or 32"
        )
    check_drop_path_rate(drop_path_rate, "MODEL.TIMM.DROP_PATH_RATE")
    if norm not in NORMS:
        known = ", ".join(map(repr, NORMS))
        raise ValueError(f"norm (MODEL.TIMM.NORM) is {norm!r}; known: {known}")
