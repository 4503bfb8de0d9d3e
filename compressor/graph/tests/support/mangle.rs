//! Breaks model files the way that a bug or a bad disk would: bits, lengths, and whole fields of the protocol buffer.

/// Numbers from a seed (xorshift).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, or 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

/// A field of a message: its number, and what it holds.
#[derive(Debug, Clone)]
enum Payload {
    Varint(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Debug, Clone)]
struct Field {
    number: u64,
    payload: Payload,
}

/// Lengths, sizes, indices and enumerations that are apt to go wrong.
const ODD: [u64; 10] =
    [0, 1, 2, 7, 127, 1 << 31, (1 << 31) - 1, u64::MAX, i64::MAX as u64, 1 << 62];

/// A copy of `file` with one to four things wrong.
pub(crate) fn mangled(file: &[u8], dice: &mut Dice) -> Vec<u8> {
    if dice.below(4) == 0 {
        return flipped(file, dice);
    }
    let mut fields = parse(file, 0).unwrap_or_default();
    for _ in 0..=dice.below(4) {
        let count = count(&fields);
        mutate(&mut fields, &mut dice.below(count), dice);
    }
    let mut out = Vec::new();
    write(&fields, &mut out);
    out
}

fn flipped(file: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = file.to_vec();
    for _ in 0..=dice.below(8) {
        let at = dice.below(out.len());
        match (dice.below(4), out.get_mut(at)) {
            (0, _) => out.truncate(at),
            (1, Some(byte)) => *byte = 0xff,
            (2, Some(byte)) => *byte = dice.below(256) as u8,
            (_, Some(byte)) => *byte ^= 1 << dice.below(8),
            _ => {}
        }
    }
    out
}

/// Every field of a message, or nothing where the bytes are none. Strings that happen to be a message are read as one;
/// written back they are the same.
fn parse(bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut rest = bytes;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let payload = match key & 7 {
            0 => Payload::Varint(varint(&mut rest)?),
            1 => Payload::Fixed(take(&mut rest, 8)?),
            2 => {
                let len = usize::try_from(varint(&mut rest)?).ok()?;
                let inner = take(&mut rest, len)?;
                let message = (depth < 12 && len > 1).then(|| parse(&inner, depth + 1)).flatten();
                message.map_or(Payload::Bytes(inner), Payload::Message)
            }
            5 => Payload::Fixed(take(&mut rest, 4)?),
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: key >> 3, payload });
    }
    Some(fields)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(rest, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take(rest: &mut &[u8], len: usize) -> Option<Vec<u8>> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken.to_vec())
}

fn count(fields: &[Field]) -> usize {
    let inner = fields.iter().map(|field| match &field.payload {
        Payload::Message(fields) => count(fields),
        _ => 0,
    });
    fields.len() + inner.sum::<usize>()
}

/// Breaks the field that is `at` fields from the first, and tells whether it was found.
fn mutate(fields: &mut Vec<Field>, at: &mut usize, dice: &mut Dice) -> bool {
    for index in 0..fields.len() {
        if *at == 0 {
            break_field(fields, index, dice);
            return true;
        }
        *at -= 1;
        if let Payload::Message(inner) = &mut fields[index].payload
            && mutate(inner, at, dice)
        {
            return true;
        }
    }
    false
}

fn break_field(fields: &mut Vec<Field>, at: usize, dice: &mut Dice) {
    let other = dice.below(fields.len());
    match dice.below(6) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(other, fields[at].clone()),
        2 => fields.swap(at, other),
        3 => fields[at].payload = fields[other].payload.clone(),
        4 => fields[at].number = 1 + dice.below(20) as u64,
        _ => break_payload(&mut fields[at].payload, dice),
    }
}

fn break_payload(payload: &mut Payload, dice: &mut Dice) {
    match payload {
        Payload::Varint(value) => *value = ODD[dice.below(ODD.len())],
        Payload::Fixed(bytes) | Payload::Bytes(bytes) => {
            let at = dice.below(bytes.len());
            match (dice.below(3), bytes.get_mut(at)) {
                (0, _) => bytes.truncate(at),
                (1, Some(byte)) => *byte = byte.wrapping_add(1),
                _ => bytes.extend_from_within(at..),
            }
        }
        Payload::Message(fields) => fields.reverse(),
    }
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        let (kind, inner) = match &field.payload {
            Payload::Varint(_) => (0, Vec::new()),
            Payload::Fixed(bytes) => (if bytes.len() == 8 { 1 } else { 5 }, bytes.clone()),
            Payload::Bytes(bytes) => (2, bytes.clone()),
            Payload::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                (2, inner)
            }
        };
        write_varint(field.number << 3 | kind, out);
        match &field.payload {
            Payload::Varint(value) => write_varint(*value, out),
            Payload::Fixed(_) => out.extend(inner),
            _ => {
                write_varint(inner.len() as u64, out);
                out.extend(inner);
            }
        }
    }
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
