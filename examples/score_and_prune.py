"""Score, leave out the training examples that the model was never at odds with, and see what it costs: python examples/score_and_prune.py

Pruning easy examples (here: the highest area under the margin) saves training time. Whether it costs accuracy is a question for
your data, and the control is as many examples left out at random.
"""

from pathlib import Path

import numpy as np

import imprint

DATA = Path(__file__).parent / "data/banking.csv"
SHARE = 0.3


def accuracy(corpus: imprint.Corpus, path: str) -> float:
    """Test accuracy of a training on this version of the corpus."""
    return float(imprint.fit(imprint.Learner("auto"), corpus, path).curves()["test_accuracy"][-1])


def main() -> None:
    """Train on everything, without the easiest examples, and without random ones."""
    corpus = imprint.open(DATA, target="label")
    run = imprint.fit(imprint.Learner("auto"), corpus, "runs/prune/everything")
    scores = imprint.score(run, ["aum"]).frame().sort("aum", descending=True)
    count = round(SHARE * len(scores))
    easiest = scores["id"].head(count).to_list()
    anyone = np.random.default_rng(0).choice(scores["id"].to_numpy(), count, replace=False).tolist()

    print(f"everything                   {float(run.curves()['test_accuracy'][-1]):.3f}")
    print(f"without the {SHARE:.0%} easiest       {accuracy(corpus.drop(easiest), 'runs/prune/easiest'):.3f}")
    print(f"without {SHARE:.0%} at random         {accuracy(corpus.drop(anyone), 'runs/prune/random'):.3f}")


if __name__ == "__main__":
    main()
