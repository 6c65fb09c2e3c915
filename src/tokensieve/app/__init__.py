"""A page on which anybody tries models and recipes on pictures and clips.

`offers` says which models, `ready` which recipes, `examples` what there is to begin with, `desk` answers; all of it is
plain Python. `page` alone knows Gradio.
"""
