"""Models. :mod:`.reasoning`, :mod:`.recording` and :mod:`.supervision` need no Detectron2."""
