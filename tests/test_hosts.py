"""hosts.config, and what is said before anything is started on the hosts that it names."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from benchmarks import three_hosts
from trial_locks import OTHER_TOKEN, TOKEN, certificates, part_of, token_file

import muprover.supervisor as supervision
from muprover.certificates import make_certificates
from muprover.cli import main, parse
from muprover.components import Layout, free_ports
from muprover.config import SettingsError
from muprover.hosts import checks
from muprover.hosts import up as up_module
from muprover.hosts.connection import Connections, HostsError, read_answer
from muprover.hosts.daemon import Daemon
from muprover.hosts.hostsfile import EXAMPLE, parse_hosts
from muprover.hosts.locks import read_locks, write_locks
from muprover.hosts.on_host import LogFile
from muprover.hosts.orders import Ordered, Orders, own_ports
from muprover.hosts.place import Place
from muprover.hosts.preflight import (
    Findings,
    Plan,
    check_model_port,
    check_moved,
    check_names,
    choose_python,
)
from muprover.hosts.record import Record, find
from muprover.hosts.state import Proof, State
from muprover.hosts.up import UpOptions
from muprover.services.locks import Locks
from muprover.supervisor import Component, Supervisor

THREE = """\
environment me@one:50000   # the port
replay      me@one:50001
network     two:50002
training    three:100      # after the original
agent       localhost:2
agent       two:1
evaluator   me@one
"""


def plan(text: str, model_port: int = 50004) -> Plan:
    return Plan(parse_hosts(text, "hosts.config"), "run", "dir", "models", model_port, None)


def test_each_host_has_its_components_and_agents_are_numbered_through():
    hosts = parse_hosts(THREE, "hosts.config")
    assert hosts.names == ["me@one", "two", "three", "localhost"]
    assert hosts.components("me@one") == ["environment", "replay", "evaluator"]
    assert hosts.components("two") == ["network", "agent-3"]
    assert hosts.components("localhost") == ["agent-1", "agent-2"]
    assert hosts.line("trainer").number == 100
    assert hosts.ports("me@one") == {"environment": 50000, "replay": 50001}


def test_hosts_are_asked_for_the_servers_that_their_components_call():
    three = plan(THREE)
    assert three.partners("localhost") == ["environment", "network", "replay"]
    assert three.partners("two") == ["environment", "models", "replay"]
    assert three.partners("three") == ["replay"]
    assert three.partners("me@one") == ["network"]
    assert three.servers("three") == {"models": 50004}
    one = plan(EXAMPLE)
    assert one.is_one_host
    assert one.partners("localhost") == []
    assert "models" not in one.servers("localhost")


def test_what_the_page_shows_can_be_done_word_for_word():
    """`make hosts-proof` does so, with real hosts."""
    text, commands = three_hosts.read_page()
    hosts = parse_hosts(text, "docs/hosts.md")
    assert set(hosts.names) == set(three_hosts.HOSTS)
    assert hosts.has("evaluator")
    assert set(commands) == {"up", "status", "logs", "down"}
    for command in commands.values():
        args = parse(shlex.split(command)[1:])
        if command == commands["up"]:
            assert None not in (args.game, args.dir, args.models, args.name)


def test_every_wrong_line_is_named_with_what_is_wrong():
    wrong = {
        "replay localhost:50000": "port 50000 is that of environment, in line 1",
        "agnet localhost:1": "no service agnet; did you mean agent?",
        "agent localhost": "no number after localhost: it is a number of agents",
        "agent me@other:0": "'0' after me@other: it is a number of agents, from 1",
        "network a b:5": "a line is `service host:number`",
        "network -oProxyCommand=sh:5": "is no host",
        "network two:99999": "'99999' after two: it is a port, from 1 to 65535",
        "environment two:50001": "a second environment; the first is in line 1",
        "trainer me@localhost:1": "line 1 calls the same host localhost; write it one way",
        "evaluator localhost:2": "it is always 1, and may be left out",
    }
    text = "\n".join(["environment localhost:50000", "# nothing wrong here", *wrong])
    with pytest.raises(SettingsError) as caught:
        parse_hosts(text, "hosts.config")
    first, *told = str(caught.value).splitlines()
    assert first == "hosts.config cannot be used:"
    assert len(told) == len(wrong)
    for place, (line, words), said in zip(range(3, 99), wrong.items(), told, strict=False):
        assert said.strip().startswith(f"line {place} (`{line}`): ")
        assert words in said


def test_no_file_asks_for_more_than_hosts_could_do():
    with pytest.raises(SettingsError, match="these would be 10001 agents; 10000 are the most"):
        parse_hosts("agent a:10000\nagent b:1\n", "hosts.config")
    with pytest.raises(SettingsError, match="line 1001: more than 1000 lines"):
        parse_hosts("agent a:1\n" * 1001, "hosts.config")


def test_services_without_a_line_are_named():
    with pytest.raises(SettingsError) as caught:
        parse_hosts("environment localhost:50000\n", "hosts.config")
    told = [line.strip() for line in str(caught.value).splitlines()[1:]]
    missing = ["replay", "network", "trainer", "agent"]  # the evaluator may be left out
    assert told == [f"there is no line for {service}" for service in missing]


def test_addresses_with_colons_keep_their_brackets():
    text = THREE.replace("two:", "[fe80::1]:").replace("three:", "10.0.0.3:")
    hosts = parse_hosts(text, "hosts.config")
    assert hosts.line("network").host == "[fe80::1]"
    assert hosts.line("trainer").host == "10.0.0.3"


def test_a_sample_is_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["up", "--example"]) == 0
    assert parse_hosts(Path("hosts.config").read_text(), "hosts.config").has("evaluator")
    Path("hosts.config").write_text("mine")
    assert main(["up", "--example"]) == 2
    assert "hosts.config is there already" in capsys.readouterr().err
    assert Path("hosts.config").read_text() == "mine"


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where this machine remembers runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def hosts_file(folder: Path, ports: list[int], agent: str) -> Path:
    path = folder / "hosts.config"
    servers = zip(("environment", "replay", "network"), ports, strict=True)
    lines = [f"{service} localhost:{port}" for service, port in servers]
    path.write_text("\n".join([*lines, "trainer localhost:1", f"agent {agent}:1"]))
    return path


def up(folder: Path, file: Path, *more: str) -> int:
    where = ["-c", str(file), "-r", str(folder / "dir"), "-n", "run"]
    return main(["up", "-g", "tictactoe", *where, *more])


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs ssh")
def test_all_that_is_wrong_is_said_at_once_and_nothing_is_started(tmp_path, state, capsys):
    ports = free_ports(3)
    other = tmp_path / "dir" / "runs" / "run"
    other.mkdir(parents=True)
    (other / "thesis.tex").write_text("\\dots")
    with socket.create_server(("", ports[0])), socket.create_server(("", ports[1])):
        file = hosts_file(tmp_path, ports, "nobody@127.0.0.1")
        assert up(tmp_path, file, "--set", "search.num_simulations=7") == 1
    told = capsys.readouterr().err
    assert "nothing was started:" in told
    assert f"localhost: port {ports[0]} (environment) is in use" in told
    assert f"localhost: port {ports[1]} (replay) is in use" in told
    assert f"localhost: {other} is not empty and holds no run" in told
    assert "nobody@127.0.0.1: cannot be reached: " in told
    assert list(other.iterdir()) == [other / "thesis.tex"]
    assert not state.exists()


def test_a_full_disk_is_named_before_it_hurts(tmp_path, monkeypatch):
    place = Place("localhost", "run", str(tmp_path), str(tmp_path / "models"))
    monkeypatch.setitem(checks.LEAST_FREE, "replay", 9e18)
    (problem,) = checks.check_folders(place, ["replay", "environment"])
    assert re.fullmatch(rf"[0-9.]+ GB are free in {tmp_path}; at least 9e\+09 are needed", problem)
    assert checks.check_folders(place, ["environment"]) == []


def test_data_that_lie_on_another_host_are_not_forgotten():
    stored = {"files": {}, "trainer": True, "replay": False}
    nothing = {"run": None}
    findings = Findings({"me@one": nothing, "two": {"run": stored}, "three": nothing})
    assert list(check_moved(plan(THREE), findings)) == [
        "three: the run's checkpoints lie on two, in dir/runs/run; name two in the line for "
        "trainer, or copy that folder"
    ]


def test_the_trainers_versions_have_a_port_of_their_own():
    together = THREE.replace("three:100", "me@one:100")
    assert list(check_model_port(plan(together))) == []
    [problem] = check_model_port(plan(together, model_port=50001))
    assert problem == "me@one: --model-port 50001 is replay's; choose another"
    [problem] = check_model_port(plan(together, model_port=0))
    assert "nobody could be told" in problem
    assert list(check_model_port(plan(EXAMPLE, model_port=50001))) == []  # nothing is pulled


def test_certificates_that_do_not_name_servers_as_they_are_called_are_named_at_once(tmp_path):
    make_certificates(tmp_path, ["one", "localhost", "10.0.0.2"], days=2)
    findings = Findings(
        addresses={
            "me@one": {"network": "10.0.0.2:50002"},
            "two": {"models": "three:50004", "environment": "one:50000", "replay": "one:50001"},
            "localhost": {"network": "[::1]:50002"},
            "three": {"replay": "one:50001"},
        }
    )
    problems = list(check_names(plan(THREE), findings, Locks(tmp_path)))
    assert len(problems) == 2
    assert "does not do for three, as models from two is called: Hostname mismatch" in problems[0]
    assert "does not do for ::1, as network from localhost is called: IP address" in problems[1]
    assert list(check_names(plan(THREE), findings, Locks())) == []


def test_a_time_limit_is_of_those_who_wait(tmp_path, state, capsys):
    file = hosts_file(tmp_path, free_ports(3), "localhost")
    assert up(tmp_path, file, "--time-limit", "5") == 2
    assert "--time-limit is of --wait" in capsys.readouterr().err


def test_who_waits_for_a_goal_that_the_settings_have_not_is_told_so(tmp_path, state, capsys):
    file = hosts_file(tmp_path, free_ports(3), "localhost")
    assert up(tmp_path, file, "--wait") == 2
    assert "--wait needs a line for the evaluator" in capsys.readouterr().err
    file.write_text(file.read_text() + "\nevaluator localhost\n")
    assert up(tmp_path, file, "--wait", "--set", "evaluation.goal=null") == 1
    assert "--wait needs a goal, and the settings have none" in capsys.readouterr().err
    assert not (tmp_path / "dir").exists()


def test_servers_that_let_in_anyone_are_spoken_of_before_they_start(tmp_path, state, monkeypatch):
    monkeypatch.setattr(up_module, "look_at_all", lambda *_: Findings())
    monkeypatch.setattr(up_module, "_start", lambda *_: None)

    def said(text: str, locks: Locks) -> bool:
        lines: list[str] = []
        planned = replace(plan(text), run=f"run-{len(list(state.rglob('*.json')))}")
        options = UpOptions("tictactoe", None, (), None, False, Layout(), locks)
        up_module.up(planned, options, lines.append)
        return any("anyone who reaches these hosts may use the servers" in line for line in lines)

    assert said(THREE, Locks())
    assert not said(THREE, Locks(token_file=token_file(tmp_path / "token", TOKEN)))
    assert not said(EXAMPLE, Locks())  # they listen on localhost


def test_where_the_servers_let_in_only_their_own_host_one_plays_there():
    facts = {"run": "first", "game": "tictactoe", "dir": "mu prover", "models": "m", "goal": None}
    facts |= {"pythons": {"beta": "/opt/python"}, "network": "beta:50002"}
    one = Record(**facts, components={"beta": ["network"]})
    assert one.play_there() == (
        "ssh -t beta /opt/python -m muprover.cli play --run 'mu prover/runs/first'"
    )
    assert Record(**facts, components={"beta": [], "alpha": []}).play_there() == ""
    assert Record(**facts, components={"localhost": []}).play_there() == ""


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("{}", r"\(run: Field required\)"),
        ('{"run": "first", "gam', r"Invalid JSON"),
        (None, r"\(components.beta: Input should be a valid array\)"),
    ],
)
def test_a_record_that_is_damaged_is_named(state, damaged, words):
    facts = {"run": "first", "game": "g", "dir": "d", "models": "m", "goal": None, "network": "n"}
    record = Record(**facts, pythons={}, components={"beta": ["network"]})
    record.save()
    assert find("first") == record
    path = state / "muprover" / "runs" / "first.json"
    damaged = damaged or json.dumps(facts | {"pythons": {}, "components": {"beta": 7}})
    path.write_text(damaged)
    with pytest.raises(SettingsError, match=rf"first\.json is damaged .*{words}.*remove it"):
        find("first")


def test_a_missing_python_is_named(tmp_path, state, capsys):
    file = hosts_file(tmp_path, free_ports(3), "localhost")
    assert up(tmp_path, file, "--python", "/no/such/python") == 1
    assert "localhost: no Python was found; looked for /no/such/python" in capsys.readouterr().err


def test_the_python_that_fits_is_taken_and_others_are_explained():
    ours = metadata.version("muprover")
    old, bare = ["/old", [3, 9], ours], ["/bare", [3, 12], None]
    assert choose_python([old, bare, ["/mine", [3, 11], ours]], []) == "/mine"
    for found, words in [
        ([old], "/old is Python 3.9; MuProver needs 3.11 or newer"),
        ([bare], f"/bare has no MuProver: /bare -m pip install 'muprover[all]=={ours}'"),
        ([["/other", [3, 11], "0.0.1"]], f"/other has MuProver 0.0.1, but here is {ours}"),
        ([], "no Python was found; looked for python3"),
    ]:
        with pytest.raises(HostsError, match="^" + words.replace("[", "\\[")):
            choose_python(found, ["python3"])


def test_a_game_that_does_not_start_there_is_explained(tmp_path, state, capsys):
    game = tmp_path / "mine.py"
    game.write_text(
        "from muprover.games.tictactoe import *\n"
        "def make_environment(): raise OSError('no board in the drawer')\n"
    )
    file = hosts_file(tmp_path, free_ports(3), "localhost")
    where = ["-c", str(file), "-r", str(tmp_path / "dir"), "-n", "run"]
    assert main(["up", "-g", str(game), *where]) == 1
    told = capsys.readouterr().err
    assert f"localhost: game {game} does not start: OSError: no board in the drawer" in told


def test_what_a_shell_says_before_an_answer_does_not_disturb():
    assert read_answer('Welcome!\n{"pid": 7}\n') == {"pid": 7}
    with pytest.raises(HostsError, match="answered something else"):
        read_answer("Welcome!\n")


def test_a_host_that_fails_does_not_hide_the_others_answers():
    def ask(host):
        if host.name == "two":
            raise HostsError("is on fire")
        return host.name

    with Connections(["localhost", "two"]) as connections:
        answers, wrong = connections.each(ask)
    assert answers == {"localhost": "localhost"}
    assert wrong == {"two": "is on fire"}


def test_hosts_with_a_common_folder_do_not_write_each_others_files(tmp_path):
    one, two = (Place(host, "run", str(tmp_path), str(tmp_path / "m")) for host in ("a", "me@b"))
    assert one.folder == two.folder
    assert {one.state, one.lock, one.log}.isdisjoint({two.state, two.lock, two.log})
    assert one.versions(["trainer", "network"]) == tmp_path / "m" / "run"
    assert two.versions(["network"]) == tmp_path / "m" / "run" / "pulled-b"
    assert two.versions(["agent-1"]) is None


def test_locks_are_brought_kept_privately_replaced_and_taken_away(tmp_path):
    place = Place("localhost", "run", str(tmp_path / "dir"), str(tmp_path / "models"))
    trial, token = certificates(tmp_path / "trial"), token_file(tmp_path / "token", TOKEN)
    told = read_locks(Locks(trial, "any", token))
    assert "ca.key" not in told["files"]
    folder = place.own / "locks"
    assert write_locks(place, told) == {
        "MUPROVER_TLS": str(folder),
        "MUPROVER_TLS_CLIENTS": "any",
        "MUPROVER_TOKEN_FILE": str(folder / "token"),
    }
    assert (folder / "tls.key").read_bytes() == (trial / "tls.key").read_bytes()
    token_file(token, OTHER_TOKEN)
    only_token = write_locks(place, read_locks(Locks(token_file=token)))
    assert [path.name for path in folder.iterdir()] == ["token"]
    assert (folder / "token").read_text() == f"{OTHER_TOKEN}\n"
    assert only_token["MUPROVER_TLS"] == ""
    assert write_locks(place, read_locks(Locks())) == {}
    assert not folder.exists()


def test_certificates_that_a_server_could_not_show_are_refused_before_anything_starts(tmp_path):
    authority = part_of(certificates(tmp_path / "trial"), "ca.crt")
    with pytest.raises(SettingsError, match=r"has no tls\.crt and tls\.key"):
        read_locks(Locks(authority))


def test_logs_begin_with_their_last_lines_and_come_whole(tmp_path):
    path = tmp_path / "agent-1.log"
    path.write_text("1\n2\n3\nhal")
    log = LogFile(path, 2)
    assert list(log.new_lines()) == ["3"]
    with path.open("a") as file:
        file.write("f\nnext\n")
    assert list(log.new_lines()) == ["half", "next"]
    assert list(log.new_lines()) == []
    path.write_text("new\n")  # it was cut
    assert list(log.new_lines()) == ["new"]


def test_what_runs_keeps_the_ports_that_were_found_for_it():
    servers = {"replay": 50001, "network": 50002}
    first = own_ports(Layout(only=("replay", "network")), servers, Orders())
    assert set(first) == {"replay", "network", "REST"}
    assert len({*first.values(), *servers.values()}) == 5
    metrics = {name: first[name] for name in ("replay", "network")}
    before = Orders(metrics=metrics, listens=servers | {"REST": first["REST"]})
    again = own_ports(Layout(only=("replay", "network", "agent-1")), servers, before)
    assert {name: again[name] for name in first} == first
    assert again["agent-1"] not in {*first.values(), *servers.values()}


def test_orders_and_states_that_are_damaged_are_taken_for_none_and_said(tmp_path, caplog):
    place = Place("localhost", "run", str(tmp_path), str(tmp_path / "models"))
    orders = Orders(number=3, components=[Ordered("replay", ["replay"], "log", 30.0, {})])
    orders.write(place)
    assert Orders.read(place) == orders
    assert Orders.read(place).components[0].component().log == Path("log")
    state = State(pid=7, proven=Proof(3.5, {"version": 9}), seconds=4.0)
    state.write(place)
    assert State.read(place) == state
    for path in (place.orders, place.state):
        for damaged in (path.read_text()[:-9], "[]", '{"number": "x", "seconds": []}', "\xff"):
            path.write_text(damaged)
            assert (Orders.read(place), State.read(place)) != (orders, state)
    assert (Orders.read(place), State.read(place)) == (Orders(), State())
    daemon = Daemon(place)
    daemon.supervisor.components = [Component("replay", [], tmp_path / "log")]
    daemon._obey(Orders.read(place))
    assert [c.name for c in daemon.supervisor.components] == ["replay"]
    assert "orders.json is damaged, and taken for empty" in caplog.text
    assert "state.json is damaged, and taken for empty" in caplog.text


def test_new_orders_leave_alone_what_is_the_same(tmp_path, monkeypatch):
    start = subprocess.Popen
    monkeypatch.setattr(
        supervision.subprocess,
        "Popen",
        lambda command, **options: start([sys.executable, "-c", command[3]], **options),
    )

    def component(name: str, more: str = "") -> Component:
        return Component(name, [f"import time; time.sleep(60){more}"], tmp_path / name)

    supervisor = Supervisor([component("replay"), component("agent-1"), component("agent-2")])
    supervisor.start()
    before = {c.name: c.process for c in supervisor.components}
    supervisor.replace([component("replay"), component("agent-2", "  # now"), component("agent-3")])
    after = {c.name: c.process for c in supervisor.components}
    assert list(after) == ["replay", "agent-2", "agent-3"]
    assert after["replay"] is before["replay"]
    assert before["replay"].poll() is None
    assert None not in (before["agent-1"].poll(), before["agent-2"].poll())
    assert (after["agent-2"].poll(), after["agent-3"].poll()) == (None, None)
    supervisor.kill()
