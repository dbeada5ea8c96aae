"""How a trained model is tested: on whole images, window by window, at one scale or several."""

from .multi_scale import MultiScaleSemanticSegmentor, build_multi_scale_model
from .plan import PlannedTest, plan_multi_scale_test, plan_test, plan_tests
from .sliding_window import SlidingWindowSegmentor
