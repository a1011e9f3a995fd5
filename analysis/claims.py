"""The fifteen claims of the paper as a scorecard: each an effect with a 95% interval, and a verdict that follows from it.

A claim is one or more tests. A test asks that an effect is above or below a bound or within a margin of zero:

- *supported* where the whole interval is on the claimed side of the bound (inside the margin),
- *contradicted* where the whole interval is on the other side (outside the margin),
- *undecided* otherwise, and wherever there is no interval.

A claim is supported if all of its tests are, contradicted if one of them is, and undecided otherwise; beside it stands the
test that decided. No correction is made for the number of claims.

Effects of hyperparameters have exact permutation intervals (`trends`); everything else resamples configurations.
"""

from __future__ import annotations

import pandas as pd

from raysweep.analysis.claim_tests import ClaimTests
from raysweep.analysis.sweep_data import SweepData

STATEMENTS = {
    1: "Higher effective rank goes with lower in-distribution loss over all models, but little remains with training "
    "choices held equal.",
    2: "The relation is not strict: models of one size and nearly equal loss differ widely in effective rank, and "
    "under-trained large-batch models have a high rank and a poor loss.",
    3: "Out-of-distribution loss is a near-linear function of in-distribution loss and tracks it better than it tracks "
    "effective rank.",
    4: "GPTQ hurts low-rank models more at the smallest sizes, most with low weight decay, and not so at the largest.",
    5: "Saturation is not caused by low effective rank alone: small-batch runs collapse in rank without a late rise in "
    "loss.",
    6: "Effective rank does not predict fine-tuning loss, and fine-tuning loss has no strong line with pretraining loss.",
    7: "In-distribution loss after fine-tuning hardly depends on the base model's rank, and rises less where the base "
    "model's loss is higher; low-weight-decay models forget least and are best after it, too.",
    8: "Larger batch: higher effective rank, lower cosine; loss is U-shaped in batch size.",
    9: "Stronger weight decay: higher effective rank, lower cosine, higher isotropy; small models are best with little, "
    "larger ones bear more.",
    10: "Learning rate: effective rank nearly flat; the prescribed rate gives the best loss.",
    11: "A higher final learning rate: higher effective rank, higher loss.",
    12: "More tokens at equal steps: higher effective rank, lower loss, lower cosine, higher isotropy.",
    13: "Effective rank and cosine of W: a moon-shaped, mostly falling relation; isotropy is concentrated and mainly "
    "sensitive to weight decay.",
    14: "H varies less than W: a higher effective rank with less spread across models.",
    15: "No metric adds predictive R² beyond size, compute and tokens, on any task.",
}

PLACES = {
    1: "Figure 2, Table 2",
    2: "Figure 2",
    3: "Figure 3, Table 3",
    4: "Figure 4, Table 4",
    5: "Figure 5",
    6: "Figure 6, Tables 6-7",
    7: "Figure 7, Tables 8-9",
    **{claim: f"Figure {claim}" for claim in range(8, 15)},
    15: "Tables 2-9",
}
"""Where the paper shows each claim; the statements are ours."""

COLUMNS = ("claim", "statement", "verdict", "effect", "value", "low", "high", "n", "rule", "reason")


def claims(sweep: SweepData, regressions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scorecard, one row per claim with the columns `COLUMNS`, and every test behind it.

    `regressions` is the first table of `regressions.regressions`.
    """
    keys = ["task", "metric", "statistic"]
    evidence = ClaimTests(sweep, regressions.set_index(keys) if len(regressions) else regressions)
    card, tests = [], []
    for number, statement in STATEMENTS.items():
        findings = list(getattr(evidence, f"claim_{number}")())
        verdicts = [test.verdict for test in findings]
        verdict = next((v for v in ("contradicted", "undecided") if v in verdicts), "supported")
        rows = [{"claim": number, "statement": statement, **vars(t), "verdict": t.verdict} for t in findings]
        # Where no interval of a claim exists, the first test says why.
        card.append(rows[verdicts.index(verdict)])
        tests += rows
    return pd.DataFrame(card, columns=COLUMNS), pd.DataFrame(tests, columns=COLUMNS)
