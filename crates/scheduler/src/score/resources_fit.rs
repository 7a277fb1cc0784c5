//! NodeResourcesFit's score: by how much of the node's resources would be in use (LeastAllocated, MostAllocated,
//! RequestedToCapacityRatio).
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/resource-bin-packing/>
use super::{Beside, MAX, share};
use crate::pod_info::Demand;
use crate::profile::{Profile, Strategy};
use crate::snapshot::NodeInfo;

/// A part of a whole, in [`MAX`]ths.
fn part(of: i64, whole: i64) -> i64 {
    (i128::from(of) * i128::from(MAX) / i128::from(whole)) as i64
}

/// The score at a utilisation, on the lines between the points.
fn on_shape(shape: &[(i64, i64)], at: i64) -> i64 {
    let Some(next) = shape.iter().position(|(x, _)| at <= *x) else {
        return shape.last().map_or(0, |(_, y)| *y);
    };
    let (x, y) = shape[next];
    match next.checked_sub(1).map(|i| shape[i]) {
        Some((x0, y0)) => y0 + (y - y0) * (at - x0) / (x - x0).max(1),
        None => y,
    }
}

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile, beside: Beside<'_>) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (name, weight) in &profile.fit.resources {
        // Only of CPU and memory every pod takes some.
        let used = if matches!(name.as_str(), "cpu" | "memory") { &node.scored } else { &node.requested };
        let (_, used, offered) = share(name, &demand.scored, used, node, beside);
        if offered <= 0 {
            continue;
        }
        let score = match &profile.fit.strategy {
            Strategy::Least if used > offered => 0,
            Strategy::Least => part(offered - used, offered),
            Strategy::Most => part(used.min(offered), offered),
            Strategy::Shape(shape) => {
                let score = on_shape(shape, if used > offered { 100 } else { part(used, offered) });
                if score <= 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match &profile.fit.strategy {
        _ if weights == 0 => 0,
        Strategy::Shape(_) => (sum as f64 / weights as f64).round() as i64,
        _ => sum / weights,
    }
}

#[cfg(test)]
mod tests {
    use super::on_shape;

    #[test]
    fn a_shape_is_followed_between_its_points() {
        let shape = [(0, 0), (50, 100), (100, 20)];
        assert_eq!([0, 25, 50, 75, 100, 120].map(|at| on_shape(&shape, at)), [0, 50, 100, 60, 20, 20]);
        assert_eq!(on_shape(&[(40, 70)], 10), 70);
    }
}
