//! The table of functions: their signatures for the check, their bodies for the run.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::eval::{Error, Work};
use super::library;
use super::types::{self, Type};
use super::value::Value;

/// A function's body; it answers [`Error::no_overload`] for arguments that another body of the name may take.
pub(super) type Body = for<'a> fn(&mut Work, &[Value<'a>]) -> Result<Value<'a>, Error>;

/// What a library declares: a name, signatures (`string.(int):string` for a member, `(string):int` for a global
/// function, separated by spaces), a body.
pub(super) struct Declared {
    pub(super) name: &'static str,
    pub(super) signatures: &'static str,
    pub(super) body: Body,
}

/// All functions of one name.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) overloads: Vec<Overload>,
    pub(super) bodies: Vec<Body>,
}

/// One signature. Its type parameters are numbered from 0.
#[derive(Debug)]
pub(super) struct Overload {
    pub(super) member: bool,
    /// With the target first.
    pub(super) args: Vec<Type>,
    pub(super) result: Type,
    pub(super) params: u32,
}

static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, Function> = HashMap::new();
    for declared in library::ALL.iter().flat_map(|l| l.iter()) {
        let function = table.entry(declared.name).or_insert_with(|| Function {
            name: declared.name,
            overloads: Vec::new(),
            bodies: Vec::new(),
        });
        function.overloads.extend(declared.signatures.split_whitespace().map(overload));
        function.bodies.push(declared.body);
    }
    table
});

/// The functions of a name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

fn overload(text: &str) -> Overload {
    let mut names: Vec<char> = Vec::new();
    let mut param = |c: char| {
        let at = names.iter().position(|n| *n == c).unwrap_or_else(|| {
            names.push(c);
            names.len() - 1
        });
        Type::Param(at as u32)
    };
    let (target, rest) = match text.find(".(") {
        Some(at) => (Some(&text[..at]), &text[at + 1..]),
        None => (None, text),
    };
    let (list, result) = rest.rsplit_once("):").unwrap_or((rest, "dyn"));
    let mut args: Vec<Type> = target.iter().map(|t| types::read(t, &mut param)).collect();
    for arg in split(list.trim_start_matches('(').trim_end()) {
        args.push(types::read(arg, &mut param));
    }
    let result = types::read(result, &mut param);
    Overload { member: target.is_some(), args, result, params: names.len() as u32 }
}

/// The parts between commas that stand in no brackets.
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.retain(|p| !p.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_read_back() {
        let show = |text: &str| {
            let o = overload(text);
            let args: Vec<String> = o.args.iter().map(|a| format!("{a:?}")).collect();
            format!("{} {} -> {:?} ({})", o.member, args.join(" "), o.result, o.params)
        };
        assert_eq!(show("(int,string):bool"), "false Int String -> Bool (0)");
        assert_eq!(
            show("map(A,B).(A):optional(B)"),
            "true Map(Param(0), Param(1)) Param(0) -> Optional(Param(1)) (2)"
        );
        assert_eq!(show("list(A).():A"), "true List(Param(0)) -> Param(0) (1)");
    }
}
