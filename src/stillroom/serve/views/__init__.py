"""Read models of the served folder, as plain values for pages and clients.

Every name is resolved inside one folder, including links; nothing here runs a model.
"""
