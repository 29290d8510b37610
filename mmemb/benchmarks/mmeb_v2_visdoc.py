"""The 24 document tasks of MMEB-V2: NDCG@5 with linear gain over all pages of a corpus."""

from __future__ import annotations

from typing import Any

from mmemb.benchmarks.mmeb_v2_task import REVISIONS, Task, row

_QUERY = "Find a document image that matches the given query:"
_PAGE = "Understand the content of the provided document image."


def _visdoc(
    name: str, group: str, source: str, *counts: int, layout: str = "beir", **fields: Any
) -> Task:
    fields |= {"source": source, "out_of_domain": group == "VisDoc-OOD", "local": False}
    fields |= {"metric": "ndcg_linear@5", "target_instruction": _PAGE, "modality": "visdoc"}
    return row(name, group, layout, "T>I", _QUERY, *counts, **fields)


def _vidore1(name: str, num_queries: int, num_pages: int, source: str = "") -> Task:
    source = source or f"vidore/{name}_test_subsampled_beir"
    return _visdoc(f"ViDoRe_{name}", "ViDoRe-V1", source, num_queries, num_pages)


def _synthetic(name: str, num_pages: int) -> Task:
    name = f"syntheticDocQA_{name}"
    return _vidore1(name, 100, num_pages, f"vidore/{name}_test_beir")


def _vidore2(name: str, num_queries: int, num_pages: int, graded: bool = False) -> Task:
    # Without a language named, a repository's queries are in all of its languages.
    task, source = f"ViDoRe_{name}", f"vidore/{name.removesuffix('_multilingual')}"
    return _visdoc(task, "ViDoRe-V2", source, num_queries, num_pages, graded=graded)


def _visrag(name: str, num_queries: int, num_pages: int) -> Task:
    # These repositories keep their test queries in a split named `train`.
    source = f"openbmb/VisRAG-Ret-Test-{name}"
    return _visdoc(
        f"VisRAG_{name}", "VisRAG", source, num_queries, num_pages, layout="visrag", split="train"
    )


VISDOC_TASKS = (
    _vidore1("arxivqa", 500, 500),
    _vidore1("docvqa", 451, 500),
    _vidore1("infovqa", 494, 500),
    _vidore1("tabfquad", 280, 70),
    _vidore1("tatdqa", 1646, 277, "vidore/tatdqa_test_beir"),
    _vidore1("shiftproject", 100, 1000, "vidore/shiftproject_test_beir"),
    _synthetic("artificial_intelligence", 968),
    _synthetic("energy", 977),
    _synthetic("government_reports", 972),
    _synthetic("healthcare_industry", 965),
    _vidore2("esg_reports_human_labeled_v2", 52, 1538, graded=True),
    _vidore2("biomedical_lectures_v2_multilingual", 640, 1016),
    _vidore2("economics_reports_v2_multilingual", 232, 452),
    _vidore2("esg_reports_v2_multilingual", 228, 1538),
    _visrag("ArxivQA", 816, 8066),
    _visrag("ChartQA", 63, 500),
    _visrag("MP-DocVQA", 591, 741),
    _visrag("SlideVQA", 556, 1284),
    _visrag("InfoVQA", 718, 459),
    _visrag("PlotQA", 863, 9593),
    _visdoc(
        "ViDoSeek-page", "VisDoc-OOD", "VLM2Vec/ViDoSeek-page-fixed", 1142, 5349,
        revision=REVISIONS[1],
    ),
    _visdoc("ViDoSeek-doc", "VisDoc-OOD", "VLM2Vec/ViDoSeek", 1142, 5349, graded=True),
    _visdoc(
        "MMLongBench-page", "VisDoc-OOD", "VLM2Vec/MMLongBench-page-fixed", 838, 6492,
        revision=REVISIONS[1],
    ),
    _visdoc("MMLongBench-doc", "VisDoc-OOD", "VLM2Vec/MMLongBench-doc", 838, 6492, graded=True),
)  # fmt: skip
