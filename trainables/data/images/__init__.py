"""Image sets: read them in every form, decode them once per machine, and make batches.

This room uses the facts, templates, splits and downloads of `data`.

    dataset      what an image set is, and how one is put together
    sources      reads image sets from Parquet, Arrow, class folders and the hub
    dividing     copies a folder of classes without splits into one with splits
    class_names  class names in the form for prompts
    torchvision  torchvision's sets, and those that are split here
    archives     sets that no library loads: VOC2007 crops, CUB-200, sets by CoOp's lists
    registered   loads a registered set from one of its sources
    decoded      decoded rows on disk, shared by a machine's workers
    pixels       decoded images of one split at one size, on disk or in memory
    batches      which rows meet in a step, and augmentation
"""
