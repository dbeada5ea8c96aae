"""How a trained model is tested: at one scale or several, whole images or windows."""
