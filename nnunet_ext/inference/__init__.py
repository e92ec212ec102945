"""The engine: prediction of folders, validation of folds and export, for any network nnU-Net builds.

It knows no model:

    predictor.py   a folder of images: nnU-Net's windows, in one process
    onnx_model.py  the same with networks that onnxruntime runs
    validation.py  the validation at the end of a fold's training
    export.py      from logits to labels on the image's own grid, without resizing every class
    samples.py     the protocol through which a network that draws samples meets the engine
"""
