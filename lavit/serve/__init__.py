"""A page to try a trained system in a browser: ``lavit serve``. It needs gradio and no network.

What a visitor gives and gets stays theirs: uploads lie in a folder that only this user can open and that goes with
the server, results are in the page itself, and the history is that of one visit.
"""
