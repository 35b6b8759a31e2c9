from hf_gru_captioner import evaluation


def test_public_names_are_listed_in_order_and_exist():
    assert evaluation.__all__ == sorted(evaluation.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(evaluation, name) for name in evaluation.__all__)
