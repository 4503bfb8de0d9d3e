//! Several scores as one, by rank: their numbers share no scale.

use super::activation::Weighted;
use super::magnitude::Magnitude;
use super::obs::Obs;
use super::{Score, Scored, Subject};

/// Mean rank over the magnitude, the deviation, the size and the second-order score (Borda's count); scores that have
/// nothing to go by are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combined;

impl Score for Combined {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let parts: [&dyn Score; 4] = [&Magnitude::L2, &Weighted::Deviation, &Weighted::Size, &Obs];
        let (mut ranked, mut blind) = (Vec::new(), None);
        for part in parts {
            match part.rate(subject)? {
                Scored::Units(units) => ranked.push(ranks(&units)),
                Scored::Blind(why) => blind = blind.or(Some(why)),
            }
        }
        match blind {
            Some(why) if ranked.len() < 2 => Ok(Scored::Blind(why)),
            _ => Ok(Scored::Units(mean(&ranked, subject.group.width))),
        }
    }
}

fn mean(ranked: &[Vec<f64>], width: usize) -> Vec<f64> {
    let at = |unit: usize| ranked.iter().map(|r| r[unit]).sum::<f64>() / ranked.len().max(1) as f64;
    (0..width).map(at).collect()
}

/// The rank of each number, from 0 for the smallest; equals share their mean rank.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let equal = |at: &&usize| values[**at].total_cmp(&values[order[from]]).is_eq();
        let count = order[from..].iter().take_while(equal).count();
        let rank = from as f64 + (count - 1) as f64 / 2.0;
        order[from..from + count].iter().for_each(|at| ranks[*at] = rank);
        from += count;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_from_the_smallest_and_equals_share_theirs() {
        assert_eq!(ranks(&[5.0, -1.0, 5.0, 2.0]), vec![2.5, 0.0, 2.5, 1.0]);
        assert_eq!(ranks(&[]), Vec::<f64>::new());
    }

    #[test]
    fn a_score_of_another_scale_counts_as_much() {
        let small = ranks(&[1e-9, 2e-9, 3e-9]);
        let large = ranks(&[3e9, 1e9, 2e9]);
        assert_eq!(mean(&[small, large], 3), vec![1.0, 0.5, 1.5]);
    }
}
