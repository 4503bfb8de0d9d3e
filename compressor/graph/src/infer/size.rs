//! Arithmetic on sizes that may be names.
//!
//! A product is written `coefficient*factor*factor` with sorted factors, so that equal products are equal
//! texts and divisions cancel; anything else becomes an expression in parentheses, one factor from then on.

use crate::Dim;

/// Longer expressions say nothing to anybody and could grow with every layer.
const MAX_EXPRESSION: usize = 120;

/// An integer that may be known only by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Int {
    Known(i64),
    Name(String),
    Unknown,
}

pub(super) fn from_dim(dim: &Dim) -> Int {
    match dim {
        Dim::Fixed(size) => i64::try_from(*size).map_or(Int::Unknown, Int::Known),
        Dim::Symbol(name) => Int::Name(name.clone()),
        Dim::Unknown => Int::Unknown,
    }
}

/// A negative number is no size.
pub(super) fn to_dim(int: &Int) -> Dim {
    match int {
        Int::Known(value) => usize::try_from(*value).map_or(Dim::Unknown, Dim::Fixed),
        Int::Name(name) => Dim::Symbol(name.clone()),
        Int::Unknown => Dim::Unknown,
    }
}

pub(super) fn add(a: &Int, b: &Int) -> Int {
    match (a, b) {
        (Int::Known(a), Int::Known(b)) => a.checked_add(*b).map_or(Int::Unknown, Int::Known),
        (Int::Known(0), other) | (other, Int::Known(0)) => other.clone(),
        (Int::Known(number), Int::Name(name)) | (Int::Name(name), Int::Known(number))
            if sum(name).is_some() =>
        {
            let Some((base, earlier)) = sum(name) else { return Int::Unknown };
            let number = earlier.checked_add(*number).map_or(Int::Unknown, Int::Known);
            add(&Int::Name(base.to_owned()), &number)
        }
        _ => match (Product::of(a), Product::of(b)) {
            (Some(a), Some(b)) if a.factors == b.factors => {
                match a.coefficient.checked_add(b.coefficient) {
                    Some(coefficient) => Product { coefficient, ..a }.to_int(),
                    None => Int::Unknown,
                }
            }
            (Some(a), Some(b)) => match b.coefficient {
                ..0 => expression(
                    &a,
                    "-",
                    &Product { coefficient: b.coefficient.saturating_neg(), ..b },
                ),
                _ => expression(&a, "+", &b),
            },
            _ => Int::Unknown,
        },
    }
}

pub(super) fn sub(a: &Int, b: &Int) -> Int {
    add(a, &mul(b, &Int::Known(-1)))
}

pub(super) fn mul(a: &Int, b: &Int) -> Int {
    if *a == Int::Known(0) || *b == Int::Known(0) {
        return Int::Known(0);
    }
    let (Some(a), Some(b)) = (Product::of(a), Product::of(b)) else { return Int::Unknown };
    let Some(coefficient) = a.coefficient.checked_mul(b.coefficient) else { return Int::Unknown };
    let mut factors = a.factors;
    factors.extend(b.factors);
    factors.sort();
    Product { coefficient, factors }.to_int()
}

/// Division rounded towards minus infinity.
pub(super) fn div_floor(a: &Int, b: &Int) -> Int {
    match (a, b) {
        (_, Int::Known(0)) => Int::Unknown,
        (a, Int::Known(1)) => a.clone(),
        (Int::Known(a), Int::Known(b)) => {
            a.checked_div_euclid(*b).filter(|_| *b > 0).map_or(Int::Unknown, Int::Known)
        }
        _ => div_exact(a, b).unwrap_or_else(|| match (Product::of(a), Product::of(b)) {
            (Some(a), Some(b)) => expression(&a, "/", &b),
            _ => Int::Unknown,
        }),
    }
}

/// The quotient, where it is known to be whole.
pub(super) fn div_exact(a: &Int, b: &Int) -> Option<Int> {
    let (mut a, b) = (Product::of(a)?, Product::of(b)?);
    for factor in &b.factors {
        let position = a.factors.iter().position(|other| other == factor)?;
        a.factors.remove(position);
    }
    if a.coefficient.checked_rem(b.coefficient)? != 0 {
        return None;
    }
    a.coefficient /= b.coefficient;
    Some(a.to_int())
}

pub(super) fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Int {
    dims.into_iter().fold(Int::Known(1), |product, dim| mul(&product, &from_dim(dim)))
}

fn expression(a: &Product, operator: &str, b: &Product) -> Int {
    let text = format!("({}{operator}{})", a.text(), b.text());
    if text.len() > MAX_EXPRESSION { Int::Unknown } else { Int::Name(text) }
}

struct Product {
    coefficient: i64,
    factors: Vec<String>,
}

impl Product {
    fn of(int: &Int) -> Option<Self> {
        match int {
            Int::Known(coefficient) => {
                Some(Self { coefficient: *coefficient, factors: Vec::new() })
            }
            Int::Name(name) => {
                let mut product = Self { coefficient: 1, factors: Vec::new() };
                for part in split(name) {
                    match part.parse::<i64>() {
                        Ok(number) => {
                            product.coefficient = product.coefficient.checked_mul(number)?
                        }
                        Err(_) => product.factors.push(part.to_owned()),
                    }
                }
                product.factors.sort();
                Some(product)
            }
            Int::Unknown => None,
        }
    }

    fn to_int(&self) -> Int {
        if self.factors.is_empty() || self.coefficient == 0 {
            return Int::Known(self.coefficient);
        }
        let text = self.text();
        if text.len() > MAX_EXPRESSION { Int::Unknown } else { Int::Name(text) }
    }

    fn text(&self) -> String {
        let coefficient = (self.coefficient != 1 || self.factors.is_empty())
            .then(|| self.coefficient.to_string());
        let parts: Vec<String> =
            coefficient.into_iter().chain(self.factors.iter().cloned()).collect();
        parts.join("*")
    }
}

/// `(base+number)` or `(base-number)` taken apart, so that numbers added one after another add up.
fn sum(name: &str) -> Option<(&str, i64)> {
    let inside = name.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0i32;
    let mut last = None;
    for (position, character) in inside.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            '+' | '-' if depth == 0 && position > 0 => last = Some(position),
            '/' if depth == 0 => return None,
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    let (base, number) = inside.split_at(last?);
    Some((base, number.parse().ok()?))
}

/// Splits at `*` outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (position, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            '*' if depth == 0 => {
                parts.push(text[start..position].trim());
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Int {
        Int::Name(text.to_owned())
    }

    #[test]
    fn products_of_names_cancel() {
        let total = mul(&mul(&name("N"), &Int::Known(2048)), &Int::Known(64));
        assert_eq!(total, name("131072*N"));
        assert_eq!(div_exact(&total, &Int::Known(512)), Some(name("256*N")));
        assert_eq!(div_exact(&total, &name("N")), Some(Int::Known(131_072)));
        assert_eq!(div_exact(&total, &name("M")), None);
        assert_eq!(div_exact(&total, &Int::Known(7)), None);
        assert_eq!(div_exact(&total, &Int::Known(0)), None);
    }

    #[test]
    fn sums_of_like_products_add_up_and_others_become_expressions() {
        assert_eq!(add(&name("N"), &name("3*N")), name("4*N"));
        assert_eq!(sub(&name("N"), &name("N")), Int::Known(0));
        let sum = add(&name("N"), &Int::Known(1));
        assert_eq!(sum, name("(N+1)"));
        assert_eq!(div_exact(&mul(&sum, &name("M")), &name("M")), Some(name("(N+1)")));
        assert_eq!(sub(&name("N"), &Int::Known(2)), name("(N-2)"));
        assert_eq!(add(&add(&name("H"), &Int::Known(2)), &Int::Known(-2)), name("H"));
        assert_eq!(add(&name("((H-1)/2)"), &Int::Known(1)), name("(((H-1)/2)+1)"));
    }

    #[test]
    fn nothing_overflows_and_nothing_grows_for_ever() {
        assert_eq!(mul(&Int::Known(i64::MAX), &Int::Known(2)), Int::Unknown);
        assert_eq!(add(&Int::Known(i64::MAX), &Int::Known(1)), Int::Unknown);
        assert_eq!(div_floor(&Int::Known(1), &Int::Known(0)), Int::Unknown);
        let mut grown = name("N");
        for _ in 0..100 {
            grown = div_floor(&add(&grown, &Int::Known(1)), &Int::Known(2));
        }
        assert_eq!(grown, Int::Unknown);
    }
}
