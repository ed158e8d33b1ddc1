"""Settings: what is refused, in which words, and what lies above what."""

import pydantic
import pytest

from muprover.config import Config, GameConfig, GoalConfig, SettingsError
from muprover.game import game_names, load_game
from muprover.layers import load_settings, parse_override, setting_paths


def refusal(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_game("tictactoe", overrides=overrides)
    return str(caught.value)


def test_a_misspelt_setting_is_refused_with_a_suggestion():
    assert refusal("search.num_simulation=5") == (
        "no setting `search.num_simulation`; did you mean `search.num_simulations`?"
    )
    assert "did you mean `network`?" in refusal("networks=3")


def test_a_setting_like_no_other_points_to_the_list():
    assert refusal("zzz.qqq=1") == "no setting `zzz`; `muprover config` lists all settings"


def test_a_value_of_the_wrong_type_is_shown():
    message = refusal("search.num_simulations=many")
    assert "search.num_simulations" in message
    assert "given 'many'" in message


def test_a_value_out_of_range_is_refused():
    assert "greater than 0" in refusal("training.batch_size=0")


def test_several_wrong_settings_are_all_named():
    message = refusal("search.num_simulation=5", "training.batch_size=-1")
    assert "num_simulation" in message
    assert "batch_size" in message


def test_more_simulations_than_the_served_search_has_room_for_are_refused():
    assert "above search.max_num_simulations 10" in refusal(
        "search.max_num_simulations=10", "search.num_simulations=11"
    )


def test_an_override_without_a_value_is_refused():
    assert "path.to.setting=value" in refusal("search.num_simulations")


def test_later_layers_lie_above_earlier_ones(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("search: {num_simulations: 7}\ntraining: {td_steps: 3}\n")
    config = load_game("tictactoe", str(file), ["search.num_simulations=8"]).config
    assert (config.search.num_simulations, config.training.td_steps) == (8, 3)


@pytest.mark.parametrize("text", ["- a\n- b\n", "search: [\n", "\x00"])
def test_a_settings_file_that_is_no_tree_is_refused(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"settings\.yaml"):
        load_game("tictactoe", str(file))


def test_another_type_of_network_starts_from_its_own_defaults():
    config = load_game("tictactoe", overrides=["network.type=resnet"]).config
    assert config.network.type == "resnet"


def test_the_tree_is_frozen():
    config = load_game("tictactoe").config
    with pytest.raises(pydantic.ValidationError):
        config.search.num_simulations = 3


def test_the_tree_survives_being_written_and_read():
    config = load_game("connect_four").config
    assert load_settings(config, [config.model_dump(mode="json")]) == config


def test_every_setting_has_a_dotted_path():
    paths = setting_paths()
    assert "search.num_simulations" in paths
    assert "network.value_support.limit" in paths
    assert parse_override("search.num_simulations=5") == {"search": {"num_simulations": 5}}


def test_the_discount_is_negative_where_the_next_move_is_the_others():
    game = GameConfig(name="g", observation_shape=(1,), num_actions=2, num_players=2, max_moves=1)
    assert Config(game=game).signed_discount == -1.0
    alone = game.model_copy(update={"num_players": 1})
    assert Config(game=alone).signed_discount == 1.0


def test_the_contract_leaves_out_what_may_change_under_a_replay_buffer():
    config = load_game("tictactoe").config
    changed = load_game(
        "tictactoe", overrides=["search.num_simulations=3", "training.learning_rate=0.1"]
    ).config
    assert config.contract == changed.contract
    assert load_game("connect_four").config.contract != config.contract


def test_symmetries_need_to_know_where_actions_lie():
    with pytest.raises(pydantic.ValidationError, match=r"game\.actions_shape"):
        GameConfig(
            name="g", observation_shape=(3, 3, 1), num_actions=9, max_moves=9, symmetries="mirror"
        )


def test_a_goal_has_one_bound():
    with pytest.raises(pydantic.ValidationError, match="either at_least or at_most"):
        GoalConfig(metric="lost_lines")
    assert GoalConfig(metric="lost_lines", at_most=0).is_met(0)
    assert not GoalConfig(metric="lost_lines", at_most=0).is_met(1)
    assert GoalConfig(metric="mean_return", at_least=475).is_met(475)


def test_an_unknown_game_is_refused_with_a_suggestion():
    with pytest.raises(SettingsError, match="did you mean `tictactoe`"):
        load_game("tictacto")


def test_a_game_file_that_fails_says_why(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(SettingsError, match="nothing_of_that_name"):
        load_game(str(file))
    file.write_text("def make_config():\n    return 3\n")
    with pytest.raises(SettingsError, match="returned no Config but 3"):
        load_game(str(file))
    with pytest.raises(SettingsError, match="no game file"):
        load_game(str(tmp_path / "missing.py"))


def test_all_games_load():
    assert {"tictactoe", "random_tictactoe", "cartpole", "connect_four"} <= set(game_names())
    for name in game_names():
        assert load_game(name).name == name
