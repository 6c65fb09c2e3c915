"""A page on which anybody tries models and recipes on pictures and clips.

`models` lists the models, `presets` their recipes, `examples` the first pictures; `backend` runs them. All of it is
plain Python: `page` alone imports Gradio.
"""
