"""Clicks to label maps: the application of `prompts/`.

A trained network, or SAM-Med3D's published weights, and whoever clicks:

    model.py, prepared.py      a promptable network with its preparation of images, and the way back
    prompted_object.py         one object in a volume of any size
    session.py, folder.py      from Python, click by click; a folder of images with prompt files
    viewer_session.py          a model folder in the session that viewers run
    scores.py                  Dice after each click of simulated users, on the grid of the plans
    users.py, curves.py, curve_folder.py
                               the same through that session, on the images' own grid, model beside model
"""
