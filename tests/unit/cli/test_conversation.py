from teengined.cli.conversation import Conversation


def test_a_conversation_is_not_changed_by_what_comes_after_it():
    before = Conversation(system="s")

    before.asked("q")

    assert before.turns == ()


def test_turns_follow_the_instructions():
    conversation = Conversation(system="s").asked("q").answered("a")

    assert [(message.role, message.content) for message in conversation.messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
    ]
    assert [message.content for message in conversation.cleared().messages] == ["s"]
