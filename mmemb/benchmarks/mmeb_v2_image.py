"""The 36 image tasks of MMEB-V2: hit@1, each query with a list of its own, its right answer first.

Instructions are those of the benchmark, letter by letter, as far as they are public; `prepare
mmeb-v2` prefers those of the annotations.
"""

from __future__ import annotations

from typing import Any

from mmemb.benchmarks.mmeb_v2_task import Task, row

_IMAGE = "ziyjiang/MMEB_Test_Instruct"

_SEE = "Represent the given image."
_RELATED = "Represent the given image with related text information:"
_WIKIPEDIA = "Represent the given Wikipedia image with related text information:"
_CROP = "Represent the given cropped image of the object"


def _image(*columns: str, num: int = 1000, out: bool = False, **fields: Any) -> Task:
    fields |= {"source": _IMAGE, "config": columns[0], "local": True, "out_of_domain": out}
    return row(*columns, num_queries=1000, num_candidates=num, modality="image", **fields)


_CLS, _QA, _T2I, _I2T, _I2I = "image_cls", "image_qa", "image_t2i", "image_i2t", "image_i2i_vg"
_CLASSIFY = "Represent the given image for classification"
_NEWS = "Represent the given news image with the following caption for domain classification:"
_HATE = (
    "Represent the given image for binary classification to determine whether it constitutes "
    "hateful speech or not"
)
_SCENE, _OBJECT = "Identify the scene shown in the image", "Identify the object shown in the image"
_COUNTRY = "Identify the country depicted in the image"
_QUESTION = "Represent the given image with the following question:"
_DIALOGUE = "Represent the given dialogue about an image, which is used for image retrieval:"
_CHANGES = "Given an image, find a similar everyday image with the described changes:"
_STYLE = "Find an image to match the fashion image and style note:"
_PAIR = (
    "Retrieve a Wikipedia image-description pair that provides evidence for the question of this "
    "image:"
)
_ISOLATE = "Crop the image to to isolate the object labeled as"  # the doubled word is in the data
_FOLLOW = "Select the portion of the image that follows the language expressions"
_ANSWERS = "Select the portion of the image that answers the question"

IMAGE_TASKS = (
    # Classification: the candidates are labels.
    _image("ImageNet-1K", "I-CLS", _CLS, "I>T", _CLASSIFY),
    _image("N24News", "I-CLS", _CLS, "IT>T", _NEWS, num=24),
    _image("HatefulMemes", "I-CLS", _CLS, "I>T", _HATE, num=2),
    _image("VOC2007", "I-CLS", _CLS, "I>T", _OBJECT, num=20),
    _image("SUN397", "I-CLS", _CLS, "I>T", _SCENE, num=397),
    _image("Place365", "I-CLS", _CLS, "I>T", _SCENE, num=365, out=True),
    _image("ImageNet-A", "I-CLS", _CLS, "I>T", _CLASSIFY, out=True),
    _image("ImageNet-R", "I-CLS", _CLS, "I>T", _CLASSIFY, num=200, out=True),
    _image("ObjectNet", "I-CLS", _CLS, "I>T", _OBJECT, num=313, out=True),
    _image("Country211", "I-CLS", _CLS, "I>T", _COUNTRY, num=211, out=True),
    # Question answering: the candidates are answers.
    _image("OK-VQA", "I-QA", _QA, "IT>T", _QUESTION),
    _image("A-OKVQA", "I-QA", _QA, "IT>T", _QUESTION),
    _image("DocVQA", "I-QA", _QA, "IT>T", _QUESTION),
    _image("InfographicsVQA", "I-QA", _QA, "IT>T", _QUESTION),
    _image("ChartQA", "I-QA", _QA, "IT>T", _QUESTION),
    _image("Visual7W", "I-QA", _QA, "IT>T", _QUESTION),
    _image("ScienceQA", "I-QA", _QA, "IT>T", _QUESTION, out=True),
    _image("VizWiz", "I-QA", _QA, "IT>T", _QUESTION, out=True),
    _image("GQA", "I-QA", _QA, "IT>T", _QUESTION, out=True),
    _image("TextVQA", "I-QA", _QA, "IT>T", _QUESTION, out=True),
    # Retrieval: a target has an instruction where it is a picture.
    _image("VisDial", "I-RET", _T2I, "T>I", _DIALOGUE, target_instruction=_SEE[:-1]),
    _image("CIRR", "I-RET", _I2I, "IT>I", _CHANGES, target_instruction=_SEE),
    _image(
        "VisualNews_t2i", "I-RET", _T2I, "T>I", "Retrieve an image of this news caption.",
        target_instruction=_SEE,
    ),
    _image(
        "VisualNews_i2t", "I-RET", _I2T, "I>T", "Find a caption for the news in the given photo.",
    ),
    _image(
        "MSCOCO_t2i", "I-RET", _T2I, "T>I",
        "Find me an everyday image that matches the given caption:", target_instruction=_SEE,
    ),
    _image(
        "MSCOCO_i2t", "I-RET", _I2T, "I>T",
        "Find an image caption describing the given everyday image.",
    ),
    _image(
        "NIGHTS", "I-RET", _I2I, "I>I",
        "Find a day-to-day image that looks similar to the provided image.",
        target_instruction=_SEE,
    ),
    _image(
        "WebQA", "I-RET", _T2I, "T>IT", "Find a Wikipedia image that answers this question:",
        target_instruction=_WIKIPEDIA,
    ),
    _image("FashionIQ", "I-RET", _I2I, "IT>I", _STYLE, target_instruction=_SEE, out=True),
    _image(
        "Wiki-SS-NQ", "I-RET", _T2I, "T>I",
        "Find the document image that can answer the given query:",
        target_instruction=_SEE[:-1], out=True,
    ),
    _image("OVEN", "I-RET", _I2I, "IT>IT", _PAIR, target_instruction=_WIKIPEDIA, out=True),
    _image(
        "EDIS", "I-RET", _T2I, "T>IT", "Find a news image that matches the provided caption:",
        target_instruction=_RELATED, out=True,
    ),
    # Visual grounding: the candidates are crops of pictures.
    _image("MSCOCO", "I-VG", _I2I, "IT>I", _ISOLATE, target_instruction=_CROP),
    _image("RefCOCO", "I-VG", _I2I, "IT>I", _FOLLOW + ".", target_instruction=_CROP, out=True),
    _image(
        "RefCOCO-Matching", "I-VG", _I2I, "IT>IT", _FOLLOW + ":",
        target_instruction=_FOLLOW + ":", out=True,
    ),
    _image("Visual7W-Pointing", "I-VG", _I2I, "IT>I", _ANSWERS, target_instruction=_CROP, out=True),
)  # fmt: skip
