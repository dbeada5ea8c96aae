"""Models of the Shapes configs that train in seconds on 96-pixel scenes."""

from pathlib import Path

from sgr.engine import load_config

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = CHECKOUT / "configs" / "shapes" / "maskformer_R50_sgr.yaml"


def tiny_options(**more) -> list[str]:
    """Options for the command line that make the Shapes config tiny; ``A__B=1`` sets A.B to 1."""
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
        "MODEL.SGR.TOKEN_DIM": 16,
        "MODEL.SGR.DIM_FEEDFORWARD": 32,
        "INPUT.MIN_SIZE_TRAIN": "(96,)",
        "INPUT.MIN_SIZE_TEST": 96,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PICTURES": 0,  # they take as long as such a training
        "DATALOADER.NUM_WORKERS": 0,
    }
    options.update((key.replace("__", "."), value) for key, value in more.items())
    return [str(each) for pair in options.items() for each in pair]


def tiny_config(output: Path, config: Path = CONFIG, **more):
    return load_config(str(config), tiny_options(OUTPUT_DIR=output, **more))
