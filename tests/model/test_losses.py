import pytest
import torch
import torch.nn.functional as F

from gaitlib.model import GaitOutput, build_losses
from gaitlib.model.losses import CrossEntropyLoss, TripletLoss, divergence

EQUAL = [0, 0, 1, 1, 2, 2]
UNEQUAL = [3, 1, 3, 0, 3, 1, 2]


def triplet_by_loop(embeddings, labels, margin):
    parts = []
    for part in embeddings.unbind(2):
        hinges = []
        for a, p, n in [
            (a, p, n)
            for a in range(len(labels))
            for p in range(len(labels))
            for n in range(len(labels))
        ]:
            if labels[a] == labels[p] != labels[n]:
                near, far = (part[a] - part[p]).norm(), (part[a] - part[n]).norm()
                hinges.append(max(0.0, (margin + near - far).item()))
        positive = [h for h in hinges if h > 0]
        parts.append((sum(positive) / max(1, len(positive)), max(hinges), len(positive)))
    return torch.tensor(parts).mean(0)


@pytest.mark.parametrize("labels", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("margin", [0.2, 2.0])
def test_triplet_loss_agrees_with_a_loop_over_all_triplets(labels, margin):
    embeddings = torch.randn(len(labels), 4, 3)
    loss, scalars = TripletLoss(margin)(embeddings, torch.tensor(labels))
    mean, hardest, number = triplet_by_loop(embeddings, labels, margin)
    torch.testing.assert_close(loss, mean)
    torch.testing.assert_close(scalars["loss"], mean)
    torch.testing.assert_close(scalars["hard_loss"], hardest)
    torch.testing.assert_close(scalars["loss_num"], number)
    distances = torch.stack([torch.cdist(p, p) for p in embeddings.unbind(2)])
    torch.testing.assert_close(scalars["mean_dist"], distances.mean(), rtol=1e-4, atol=1e-4)


def test_triplet_loss_on_a_line_worked_by_hand():
    # Subject 0 at 0 and 1, subject 1 at 1.5: with margin 1 the anchors give, positives first,
    # 0: (0 - 1.5, 1 - 1.5) + 1 -> 0, .5;  1: (1 - .5, 0 - .5) + 1 -> 1.5, .5;
    # 1.5: (0 - 1.5, 0 - .5) + 1 -> 0, .5.  Mean of .5, 1.5, .5, .5 is .75.
    embeddings = torch.tensor([0.0, 1.0, 1.5])[:, None, None]
    loss, scalars = TripletLoss(1.0)(embeddings, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(0.75)
    assert scalars["loss_num"] == 4 and scalars["hard_loss"].item() == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [
        (torch.tensor([0.0, 0.0, 9.0, 9.0]), [0, 0, 1, 1]),  # every negative is far enough
        (torch.randn(4), [2, 2, 2, 2]),  # no negative at all
    ],
)
def test_triplet_loss_is_zero_where_there_is_nothing_to_learn(embeddings, labels):
    embeddings = embeddings[:, None, None].requires_grad_()
    loss, scalars = TripletLoss(0.2)(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss == 0 and scalars["hard_loss"] == 0 and scalars["loss_num"] == 0
    assert (embeddings.grad == 0).all()


def test_triplet_loss_of_equal_embeddings_is_the_margin_with_a_finite_gradient():
    embeddings = torch.ones(6, 4, 2, requires_grad=True)
    loss, _ = TripletLoss(0.2)(embeddings, torch.tensor(EQUAL))
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("smooth", [True, False])
def test_cross_entropy_agrees_with_a_loop_over_clips_and_parts(smooth):
    logits, labels, eps = torch.randn(5, 4, 3).clamp(-1, 1), torch.tensor([0, 3, 1, 1, 2]), 0.1
    total, right = 0.0, 0
    for i, label in enumerate(labels):
        for part in logits[i].unbind(1):
            log_p = F.log_softmax(16 * part, 0)
            total -= (1 - eps) * log_p[label] + eps * log_p.mean() if smooth else log_p[label]
            right += int(part.argmax() == label)
    loss, scalars = CrossEntropyLoss(16, smooth, eps)(logits, labels)
    torch.testing.assert_close(loss, total / 15)
    assert scalars["accuracy"].item() == pytest.approx(right / 15)
    assert "accuracy" not in CrossEntropyLoss(log_accuracy=False)(logits, labels)[1]


def test_losses_are_computed_in_float32_under_autocast():
    output = GaitOutput(torch.randn(6, 4, 3), torch.randn(6, 3, 3).tanh())
    losses = build_losses([{"type": "TripletLoss"}, {"type": "CrossEntropyLoss"}])
    expected, _ = losses(output, torch.tensor(EQUAL))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = losses(output, torch.tensor(EQUAL))
    assert total.dtype == torch.float32 and total == expected


def test_the_total_is_the_weighted_sum_and_the_log_says_whose():
    output = GaitOutput(torch.randn(6, 4, 3, requires_grad=True), torch.randn(6, 3, 3))
    losses = build_losses(
        [
            {"type": "TripletLoss", "margin": 1.0, "loss_term_weight": 2.0, "log_prefix": "metric"},
            {"type": "CrossEntropyLoss", "scale": 8, "eps": 0.2, "loss_term_weight": 0.1},
        ]
    )
    total, logged = losses(output, torch.tensor(EQUAL))
    triplet, _ = TripletLoss(1.0)(output.embeddings, torch.tensor(EQUAL))
    softmax, _ = CrossEntropyLoss(8, True, 0.2)(output.logits, torch.tensor(EQUAL))
    torch.testing.assert_close(total, 2 * triplet + 0.1 * softmax)
    assert total.requires_grad and not any(value.requires_grad for value in logged.values())
    torch.testing.assert_close(logged["metric/loss"], triplet.detach())
    assert set(logged) == {
        *(f"metric/{name}" for name in ("loss", "hard_loss", "loss_num", "mean_dist")),
        *(f"softmax/{name}" for name in ("loss", "accuracy")),
    }


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ([], "empty"),
        ([{"type": "TripletLos"}], "'TripletLos'.*CrossEntropyLoss.*TripletLoss"),
        ([{"type": "TripletLoss"}] * 2, "log_prefix 'triplet'"),
    ],
)
def test_loss_settings_that_mean_nothing_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        build_losses(cfg)


def test_a_loss_on_logits_needs_logits():
    with pytest.raises(ValueError, match="'softmax' needs logits"):
        losses = build_losses([{"type": "CrossEntropyLoss"}])
        losses(GaitOutput(torch.zeros(2, 2, 2), None), torch.tensor([0, 1]))


def test_divergence_is_torchs_for_each_part_and_zero_from_oneself():
    ours, theirs = torch.randn(2, 3, 5, 4).unbind(0)  # (N, K, P)
    expected = torch.zeros(3)
    for part in range(4):
        inputs, targets = (torch.log_softmax(16 * x[:, :, part] / 4, 1) for x in (ours, theirs))
        kl = F.kl_div(inputs, targets, log_target=True, reduction="none").sum(1)
        expected += 16 * kl / 4
    torch.testing.assert_close(divergence(ours, theirs, 16.0), expected)
    assert divergence(ours, ours, 16.0).abs().max() < 1e-5
