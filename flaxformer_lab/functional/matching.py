"""The assignment of least cost, by shortest augmenting paths: exact, of fixed shape, and so for `jit` and `vmap`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def linear_sum_assignment(
    cost: Float[Array, "rows columns"], valid: Bool[Array, " rows"] | None = None
) -> Int[Array, " rows"]:
    """The column of each row, all different, so that the sum of their costs is the least.

    valid: rows that are not padding; padding gets no column, and a meaningless number. The costs must be finite: where
    one is not, the columns are arbitrary. The algorithm is Jonker and Volgenant's (1987) as in
    `scipy.optimize.linear_sum_assignment`: each row in turn takes the shortest path, in costs reduced by potentials, to
    a column that is free. So it takes at most rows^2 steps, each over all columns.

    Raises:
        ValueError: there are more rows than columns.
    """
    rows, columns = cost.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot each have one of {columns} columns of their own")
    valid = jnp.ones(rows, bool) if valid is None else valid
    free = rows  # in place of the row of a column that has none

    def add_row(state: tuple[Array, Array, Array], row: Int[Array, ""]) -> tuple[tuple[Array, Array, Array], None]:
        row_of, u, v = state  # each column's row, and the potentials of rows and columns

        # The path starts at `row`, in a column that does not exist: the last one of these arrays.
        rows_on_path = jnp.append(row_of, row)
        start = (
            jnp.int32(columns),
            jnp.full(columns, jnp.inf),
            jnp.full(columns, columns, jnp.int32),
            jnp.zeros(columns + 1, bool),
            u,
            jnp.append(v, 0.0),
            jnp.int32(0),
        )

        def goes_on(path: tuple[Array, ...]) -> Bool[Array, ""]:
            column, *_, count = path
            return (rows_on_path[column] != free) & (count <= rows)

        def step(path: tuple[Array, ...]) -> tuple[Array, ...]:
            """To the nearest column that the path has not seen."""
            column, distance, before, seen, u, v, count = path
            seen = seen.at[column].set(True)
            here = rows_on_path[column]
            reduced = cost[here] - u[here] - v[:columns]
            closer = ~seen[:columns] & (reduced < distance)
            distance = jnp.where(closer, reduced, distance)
            before = jnp.where(closer, column, before)
            open_ = jnp.where(seen[:columns], jnp.inf, distance)
            nearest = jnp.argmin(open_).astype(jnp.int32)
            delta = open_[nearest]
            u = u.at[jnp.where(seen, rows_on_path, free)].add(delta)
            v = v - jnp.where(seen, delta, 0)
            distance = jnp.where(seen[:columns], distance, distance - delta)
            return nearest, distance, before, seen, u, v, count + 1

        column, _, before, _, u, v, _ = jax.lax.while_loop(goes_on, step, start)

        def shift(_: Int[Array, ""], walk: tuple[Array, Array]) -> tuple[Array, Array]:
            """Backwards along the path: each column takes the row of the one before it."""
            column, row_of = walk
            earlier = jnp.append(before, columns)[column]
            row_of = row_of.at[column].set(jnp.append(row_of, row)[earlier], mode="drop")
            return earlier, row_of

        _, new_row_of = jax.lax.fori_loop(0, rows, shift, (column, row_of))
        new = (new_row_of, u, v[:columns])
        return jax.tree.map(lambda ours, theirs: jnp.where(valid[row], ours, theirs), new, state), None

    start = (jnp.full(columns, free, jnp.int32), jnp.zeros(rows + 1), jnp.zeros(columns))
    (row_of, _, _), _ = jax.lax.scan(add_row, start, jnp.arange(rows, dtype=jnp.int32))
    return jnp.zeros(rows + 1, jnp.int32).at[row_of].set(jnp.arange(columns, dtype=jnp.int32))[:rows]
