"""Carry out one step of a plan.

A step that can't be done raises; the loop says so in the status and looks again. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatchmethod

from pgherd.errors import BadInput
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.operations import store
from pgherd.reconcile import handover, plan, steps
from pgherd.reconcile.observe import World
from pgherd.reconcile.state import Observed


class Actor:
    """Does the steps of one cluster.

    :param run_operation: sees to it that an operation is being run (returns at once)
    :param recover: sees to it that the cluster is being made from its backup (returns at once)
    :param rebuild: sees to it that a group is being rebuilt (returns at once)
    """

    def __init__(
        self,
        world: World,
        run_operation: Callable[[int], None],
        recover: Callable[[], None],
        rebuild: Callable[[int], None],
    ) -> None:
        self.world = world
        self._rebuild = rebuild
        self._run_operation = run_operation
        self._recover = recover

    @singledispatchmethod
    def act(self, step: steps.Step, seen: Observed) -> None:
        """Do it.

        :raises PgherdError: it could not be done
        """
        raise NotImplementedError(step)

    @act.register
    def _(self, step: steps.StartMember, seen: Observed) -> None:
        config = seen.wanted_configs[step.member.group]
        self.world.platform.start_member(seen.declaration.cluster, step.member, config)

    @act.register
    def _(self, step: steps.StopMember, seen: Observed) -> None:
        self.world.platform.stop_member(step.member)

    @act.register
    def _(self, step: steps.RemoveMember, seen: Observed) -> None:
        self.world.platform.remove_member(step.member)

    @act.register
    def _(self, step: steps.Forget, seen: Observed) -> None:
        self.world.platform.forget(self.world.name, purge=step.purge)

    @act.register
    def _(self, step: steps.ApplyConfig, seen: Observed) -> None:
        # Only a group that follows another one has none; any of its Patronis will do.
        running = [state for state in seen.of_group(step.group) if state.patroni is not None]
        if (through := seen.primary(step.group) or next(iter(running), None)) is not None:
            self.world.patroni.patch_config(through.view.rest, step.patch)

    @act.register
    def _(self, step: steps.RestartMember, seen: Observed) -> None:
        self.world.patroni.restart(seen.members[step.member.name].view.rest, only_if_pending=True)

    @act.register
    def _(self, step: steps.RebuildMember, seen: Observed) -> None:
        self.world.platform.rebuild_member(step.member)

    @act.register
    def _(self, step: steps.ReplaceMember, seen: Observed) -> None:
        self.world.platform.replace_member(step.member)

    @act.register
    def _(self, step: steps.TryMember, seen: Observed) -> None:
        self.world.platform.try_member(seen.declaration.cluster, step.member)

    @act.register
    def _(self, step: steps.Switchover, seen: Observed) -> None:
        leader, candidate = (seen.members[each.name] for each in (step.leader, step.candidate))
        handover.switchover(self.world, seen, leader, candidate)

    @act.register
    def _(self, step: steps.Initialise, seen: Observed) -> None:
        if step.group == COORDINATOR:
            self.world.engine.initialise_coordinator(seen.declaration.cluster.spec.shard_count)
        else:
            self.world.engine.initialise_segment(step.group)

    @act.register
    def _(self, step: steps.AdmitFirst, seen: Observed) -> None:
        for group in step.groups:
            self.world.engine.admit(group, plan.wanted_endpoints(seen, group))

    @act.register
    def _(self, step: steps.UpdateEndpoints, seen: Observed) -> None:
        self.world.engine.update_endpoints(step.group, step.endpoints)

    @act.register
    def _(self, step: steps.RequestOperation, seen: Observed) -> None:
        store.request(
            self.world.databases,
            step.kind,
            from_segments=step.from_segments,
            to_segments=step.to_segments,
            parameters={"generation": seen.declaration.generation},
        )

    @act.register
    def _(self, step: steps.RunOperation, seen: Observed) -> None:
        self._run_operation(step.operation)

    @act.register
    def _(self, step: steps.Recover, seen: Observed) -> None:
        if step.error is not None:
            raise BadInput(step.error)
        self._recover()

    @act.register
    def _(self, step: steps.Rebuild, seen: Observed) -> None:
        self._rebuild(step.group)

    @act.register
    def _(self, step: steps.CleanUp, seen: Observed) -> None:
        self.world.engine.clean_up()

    @act.register
    def _(self, step: steps.RecordMembers, seen: Observed) -> None:
        record_members(self.world, seen)


def record_members(world: World, seen: Observed) -> None:
    """Make ``pgherd.segment_configuration`` say what was seen, in one transaction."""
    wanted = plan.segment_configuration(seen)
    with world.databases.connect(COORDINATOR, autocommit=False) as connection:
        connection.execute(
            "DELETE FROM pgherd.segment_configuration WHERE member <> ALL (%s)", [list(wanted)]
        )
        for name, (role, mode, status) in sorted(wanted.items()):
            view = seen.members[name].view
            preferred = "primary" if view.member.ordinal == 0 else "standby"
            connection.execute(
                "INSERT INTO pgherd.segment_configuration AS c VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (member) DO UPDATE SET role = excluded.role, mode = excluded.mode,"
                " status = excluded.status, host = excluded.host, port = excluded.port",
                [
                    name,
                    view.member.group,
                    group_name(view.member.group),
                    role,
                    preferred,
                    mode,
                    status,
                    view.postgres.host,
                    view.postgres.port,
                ],
            )
